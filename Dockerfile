# tuili as a container: built in one stage, run in another without compilers, by a user without rights.
#   docker build -t tuili . && docker run --init -p 8000:8000 -e TUILI_SERVE_API_KEY=... -v tuili:/var/lib/tuili tuili
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY pyproject.toml CMakeLists.txt README.md LICENSE ./
COPY csrc csrc
COPY src src
RUN python -m venv /opt/tuili && /opt/tuili/bin/pip install --no-cache-dir '.[otel]'

FROM python:${PYTHON}-slim
COPY --from=build /opt/tuili /opt/tuili
RUN useradd --system --uid 10001 --user-group --home-dir /var/lib/tuili --create-home tuili
ENV PATH=/opt/tuili/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    TUILI_HOME=/var/lib/tuili/store \
    TUILI_SERVE_HOST=0.0.0.0
USER tuili
WORKDIR /var/lib/tuili
VOLUME /var/lib/tuili
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
# Without a key the server refuses to start, as others can reach it: give one in TUILI_SERVE_API_KEY.
ENTRYPOINT ["tuili"]
CMD ["serve"]
