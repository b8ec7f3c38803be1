"""Demonstrates what a budget buys: pqd at three budgets, and a plot of accuracy against images asked.

    python examples/accuracy_against_budget.py

Writes accuracy_against_budget.png into the current folder; needs metazoo[learn] and matplotlib. Small to be quick: two
teachers, few steps, few episodes, so the curve shows the way and no more; `scripts/bench methods` measures what we state.
"""

# %% Two black boxes of five classes each, and tasks from classes that neither knows.
import matplotlib.pyplot as plt

from contracts.meta_models import BackboneConfig, Evaluation
from contracts.methods import PqdOptions
from dfml.datasets import open_dataset
from dfml.evaluate import evaluate, evaluate_random
from dfml.methods import pqd
from dfml.supervised import train_classifier
from dfml.teachers import ModuleTeacher

glyphs = open_dataset("glyphs", None)
images = glyphs.images("train")
config = BackboneConfig(width=16)
episodes = Evaluation(dataset="glyphs", split="val", episodes=60, shots=[5])


def teacher(number: int) -> ModuleTeacher:
    """A network that knows five classes, as an API that counts the images it is asked about."""
    shown = images[5 * number : 5 * number + 5, :60]
    classifier, _ = train_classifier(shown, config=config, seed=number, epochs=6)
    return ModuleTeacher(classifier, ways=5, input_shape=(3, 32, 32))


teachers = [teacher(number) for number in range(2)]

# %% The same method, steps and episodes at each budget; each asks anew, so each pays for itself alone.
asked, accuracy, interval = [], [], []
for budget in (32, 256, 2048):
    before = sum(teacher.queries for teacher in teachers)
    distilled = pqd.train(teachers, config, PqdOptions(steps=80), queries=budget, seed=0)
    asked.append(sum(teacher.queries for teacher in teachers) - before)
    score = evaluate(distilled.backbone, glyphs, episodes)
    accuracy.append(score.accuracy["5"])
    interval.append(score.interval["5"])
    print(f"{asked[-1]:>5} images asked of {budget}: {accuracy[-1]:.1f} ± {interval[-1]:.1f} %")
untrained = evaluate_random(config, (3, 32, 32), glyphs, episodes, seeds=(0,)).accuracy["5"]
print(f"untrained: {untrained:.1f} %")

# %% The curve.
figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
axes.errorbar(asked, accuracy, yerr=interval, marker="o", capsize=3, label="pqd")
axes.axhline(untrained, linestyle="--", color="grey", label="untrained")
axes.set(xscale="log", xlabel="images asked", ylabel="accuracy of 5-way 5-shot tasks (%)")
axes.legend()
figure.savefig("accuracy_against_budget.png")
print("accuracy_against_budget.png")
