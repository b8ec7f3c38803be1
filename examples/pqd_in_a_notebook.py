"""Demonstrates how to use `dfml` by itself: no service, no Redis; the teachers are networks in this process.

    python examples/pqd_in_a_notebook.py

Needs metazoo[learn]; takes less than a minute on one core.
"""

from contracts.meta_models import BackboneConfig, Evaluation
from contracts.methods import PqdOptions
from dfml.datasets import open_dataset
from dfml.evaluate import evaluate, evaluate_random
from dfml.methods import pqd
from dfml.supervised import train_classifier
from dfml.teachers import ModuleTeacher

glyphs = open_dataset("glyphs", None)
images = glyphs.images("train")
config = BackboneConfig()

teachers = []
for number in range(3):  # three black boxes of five classes each
    classifier, accuracy = train_classifier(images[5 * number : 5 * number + 5], config=config, seed=number, epochs=6)
    teachers.append(ModuleTeacher(classifier, ways=5, input_shape=(3, 32, 32)))
    print(f"teacher {number}: {accuracy:.0%} on images it has not seen")

distilled = pqd.train(teachers, config, PqdOptions(steps=150), queries=1500, seed=0)
print("images asked:", [teacher.queries for teacher in teachers])

episodes = Evaluation(dataset="glyphs", split="val", episodes=200)
print("meta-model:", evaluate(distilled.backbone, glyphs, episodes).accuracy)
print("untrained: ", evaluate_random(config, (3, 32, 32), glyphs, episodes, seeds=(0,)).accuracy)
