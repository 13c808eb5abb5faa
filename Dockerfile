# docs/docker.md says how to run it.
FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo xtask dist \
    && mkdir /vkog \
    && tar -xzf target/dist/vkog-*.tar.gz -C /vkog --strip-components=1

FROM debian:bookworm-slim
# The plugins belong to root, so that the server cannot write them; the store's folder is all that it can.
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
ENTRYPOINT ["/usr/local/bin/vkog"]
# Nobody reaches a container but by what is published of it. Whoever gives arguments of his own says who may.
CMD ["--open"]
