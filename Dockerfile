# `parotid-seg infer` and `listen` on a CPU (target cpu, the default) or an NVIDIA GPU (target gpu); see docs/scale.md.

# Any image with the tested Python, its module venv and the C++ library; name a mirror's, or one by its digest.
ARG BASE=python:3.11-slim-bookworm


FROM ${BASE} AS source
RUN python3 -m venv /opt/parotid-seg
ENV PATH=/opt/parotid-seg/bin:$PATH
WORKDIR /src
COPY . .


# A pip.conf for another package index may be lent to a build with --secret; neither it nor pip stays in the image.
FROM source AS cpu-packages
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    pip install -c constraints.txt '.[node,openvino]' \
    && pip uninstall -y pip setuptools


# onnxruntime-gpu instead of onnxruntime, as in `make gpu`: they share files and must not be installed together.
FROM source AS gpu-packages
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    pip install -c constraints.txt '.[node,gpu]' \
    && pip uninstall -y onnxruntime onnxruntime-gpu \
    && pip install -c constraints.txt --no-deps onnxruntime-gpu \
    && pip uninstall -y pip setuptools


FROM ${BASE} AS runtime
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="parotid-seg" \
      org.opencontainers.image.description="Parotid gland masks from head-and-neck CT; not a medical device" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
# Where a choice of engine is kept; any user may, as the one that runs is often not the one below (docker run --user).
RUN mkdir --mode=1777 /cache
ENV PATH=/opt/parotid-seg/bin:$PATH \
    XDG_CACHE_HOME=/cache
# A number, so that Kubernetes can see that it is not root.
USER 10001:10001
# SIGTERM does not end a container's first process unless it asks for it. This is Ctrl-C: finished cases are kept.
STOPSIGNAL SIGINT
ENTRYPOINT ["parotid-seg"]
CMD ["--help"]


FROM runtime AS gpu
# What NVIDIA's container runtime hands in: the GPUs, and of the driver what computing and nvidia-smi need.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=gpu-packages /opt/parotid-seg /opt/parotid-seg


FROM runtime AS cpu
COPY --from=cpu-packages /opt/parotid-seg /opt/parotid-seg
