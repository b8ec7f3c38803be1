# One image for every service; docker-compose.yml says what each runs.
FROM python:3.11-slim AS build
WORKDIR /src
COPY pyproject.toml constraints.txt hatch_build.py README.md LICENSE ./
COPY contracts contracts
COPY metering metering
COPY dfml dfml
COPY edge edge
COPY api_zoo api_zoo
COPY meta_server meta_server
COPY worker worker
COPY client client
COPY metazoo metazoo
COPY benchmarks/results benchmarks/results
RUN python -m venv /opt/metazoo \
 && /opt/metazoo/bin/pip install --no-cache-dir -c constraints.txt ".[zoo,server,worker,s3,otel]"

FROM python:3.11-slim
# a volume takes the owner of the folder that it is mounted on
RUN useradd --create-home --uid 1000 metazoo && install -d -o metazoo -g metazoo /data /data/artifacts
COPY --from=build /opt/metazoo /opt/metazoo
ENV PATH=/opt/metazoo/bin:$PATH PYTHONUNBUFFERED=1
USER metazoo
WORKDIR /home/metazoo
ENTRYPOINT ["metazoo"]
CMD ["--help"]
