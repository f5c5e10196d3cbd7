# docker build -t gralora .                               for the CPU
# docker build -t gralora --build-arg TORCH=cu130 .       for NVIDIA GPUs, with PyTorch's build for CUDA 13.0; cu126 and others likewise
# docker run -p 7860:7860 -v "$PWD:/work" gralora ui --listen 0.0.0.0 --auth name:password       add --gpus all for GPUs
FROM python:3.12-slim
ARG TORCH=cpu
# both from one index: a torchvision of another build does not load
RUN pip install --no-cache-dir torch torchvision --index-url "https://download.pytorch.org/whl/${TORCH}"
COPY . /src
RUN pip install --no-cache-dir /src
WORKDIR /work
EXPOSE 7860
ENTRYPOINT ["gralora"]
CMD ["--help"]
