# docker build -t gralora .                                            for the CPU, or for an NVIDIA GPU with --gpus all
# docker build -t gralora --build-arg PIP_ARGS="..." .                 another build of torch, by options for pip
# docker run -p 7860:7860 -v "$PWD:/work" gralora ui --listen 0.0.0.0 --auth name:password
ARG BASE=python:3.12-slim
FROM ${BASE}
ARG PIP_ARGS=""
COPY . /src
RUN pip install --no-cache-dir ${PIP_ARGS} /src
WORKDIR /work
EXPOSE 7860
ENTRYPOINT ["gralora"]
CMD ["--help"]
