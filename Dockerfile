# A compile server in a container: docs/containers.md. Two images: `server`, the last, and `client`, to try it with.
# To be built in Docker's format (`podman build --format docker`): the other, OCI's, has no HEALTHCHECK.

FROM debian:bookworm-slim AS build
# Optional parts, with commas between them: farm, say.
ARG EXTRAS=""
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3-venv \
 && apt-get clean \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY stapsrv ./stapsrv
RUN python3 -m venv /opt/stapsrv \
 && /opt/stapsrv/bin/pip install --no-cache-dir --disable-pip-version-check ".${EXTRAS:+[$EXTRAS]}"

FROM debian:bookworm-slim AS client
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends systemtap systemtap-client libnss3-tools \
 && apt-get clean \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 971 --user-group --create-home stap-client
COPY packaging/container/hello /usr/local/bin/hello
USER 971:971
WORKDIR /home/stap-client
ENTRYPOINT ["hello"]

FROM debian:bookworm-slim AS server
# Packages with kernel headers to be in the image, with blanks between them: linux-headers-amd64, say. Without, headers
# come by mounts.
ARG HEADERS=""
# Debian's archive keeps one version of a package, so that a version named here would soon not be found.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends systemtap systemtap-common gcc make libnss3-tools \
    bubblewrap kmod libelf1 libssl3 openssl python3 procps \
 && for package in $HEADERS; do apt-get install -y --no-install-recommends "$package" || exit; done \
 && apt-get clean \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --system --gid 970 stap-server \
 && useradd --system --uid 970 --gid 970 --home-dir /var/lib/stap-server --shell /usr/sbin/nologin stap-server \
 && install -d -o 970 -g 970 -m 755 /var/lib/stap-server \
 && install -d -o 970 -g 970 -m 700 /var/lib/stap-farm \
 && install -d -m 755 /etc/stap-server/conf.d
COPY packaging/patch-runtime packaging/common.bash /usr/local/lib/stapsrv/
RUN /usr/local/lib/stapsrv/patch-runtime /opt/stapsrv-runtime
COPY --from=build /opt/stapsrv /opt/stapsrv
# /tmp is the one directory that every engine can give to this user, in memory or not.
ENV PATH=/opt/stapsrv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    LANG=C.UTF-8 \
    STAPSRV_LOG_FILE=/dev/stdout \
    STAPSRV_MDNS=no \
    STAPSRV_NICKNAME=container \
    STAPSRV_PORT=5001 \
    STAPSRV_RELEASE=installed \
    STAPSRV_RUNTIME=/opt/stapsrv-runtime \
    STAPSRV_STAT_PATH=/tmp/stap-server
USER 970:970
WORKDIR /
# Certificate, ports and stap's cache. A new volume gets a certificate of its own when the server first starts.
VOLUME /var/lib/stap-server
EXPOSE 5001
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 \
    CMD ["stap-server", "ctl", "status", "--classic"]
ENTRYPOINT ["stap-serverd"]
