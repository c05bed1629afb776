# The app image: Flower's superexec with this package and its dependencies. No key, certificate or data enters it.
FROM flwr/superexec:1.42.0

WORKDIR /app
COPY --chown=app:app . /app/feddat
# Flower is in the image; its simulation engine is not needed here.
RUN sed -i 's/"flwr\[simulation\]/"flwr/' /app/feddat/pyproject.toml \
    && python -m pip install --no-cache-dir -c /app/feddat/constraints.txt "/app/feddat[app]" \
    && mkdir /app/state
ENV FLWR_HOME=/app/state/flwr \
    FEDDAT_HOME=/app/state/feddat \
    HF_HUB_OFFLINE=1
