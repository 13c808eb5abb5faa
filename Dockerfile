# docs/how-to/docker.md describes how to run it.
FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo xtask dist \
    && mkdir /vkog \
    && tar -xzf target/dist/vkog-*.tar.gz -C /vkog --strip-components=1

FROM debian:bookworm-slim
# The plugins belong to root, so the server cannot write them. It can write only the folder of the store.
COPY --from=build --chown=0:0 /vkog/vkog /usr/local/bin/vkog
COPY --from=build --chown=0:0 /vkog/plugins /usr/local/lib/vkog/plugins
RUN install -d -o 10001 -g 10001 -m 0700 /var/lib/vkog
USER 10001:10001
ENV VKOG_FILE=/var/lib/vkog/store.vkog \
    VKOG_PLUGIN_DIR=/usr/local/lib/vkog/plugins \
    VKOG_LISTEN=0.0.0.0:3110
VOLUME /var/lib/vkog
EXPOSE 3110
STOPSIGNAL SIGTERM
# It finds the address by VKOG_LISTEN and VKOG_CONFIG. A large store loads within the start period.
HEALTHCHECK --interval=10s --timeout=6s --start-period=10m CMD ["/usr/local/bin/vkog", "health"]
ENTRYPOINT ["/usr/local/bin/vkog"]
# A container is reachable only through its published ports and networks. Arguments replace --open.
CMD ["--open"]
