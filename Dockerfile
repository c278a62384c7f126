# Two images: docker build --target digestlock (the plugin and the resolver) and --target digestlock-companion. The bases
# are named by exact tags. Tags can move, so a release is built with their digests: docs/releasing.md.

FROM --platform=$BUILDPLATFORM docker.io/library/golang:1.26.8 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG TARGETOS
ARG TARGETARCH
ARG VERSION=devel
RUN GOOS=$TARGETOS GOARCH=$TARGETARCH make build VERSION=$VERSION


FROM gcr.io/distroless/static-debian13:nonroot AS digestlock-companion
ARG VERSION=devel
ARG REVISION=
LABEL org.opencontainers.image.title="digestlock-companion" \
      org.opencontainers.image.description="Commits digest-lock.yaml for Digestlock, an Argo CD plugin" \
      org.opencontainers.image.source="https://github.com/digestlock/digestlock" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
COPY --from=build /src/bin/digestlock-companion /usr/local/bin/
USER 999:999
ENTRYPOINT ["/usr/local/bin/digestlock-companion"]


# The last stage is what docker build makes without --target. In the plugin's container the command is
# /var/run/argocd/argocd-cmp-server, which Argo CD's init container copyutil puts there; it reads plugin.yaml. The user is
# the repo-server's: of another one argocd-cmp-server's socket would be closed to it.
FROM gcr.io/distroless/static-debian13:nonroot AS digestlock
ARG VERSION=devel
ARG REVISION=
LABEL org.opencontainers.image.title="digestlock" \
      org.opencontainers.image.description="Argo CD plugin that renders kustomize overlays with digests for mutable tags, and its resolver" \
      org.opencontainers.image.source="https://github.com/digestlock/digestlock" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
COPY plugin/plugin.yaml /home/argocd/cmp-server/config/plugin.yaml
COPY --from=build /src/bin/digestlock /src/bin/docker-credential-digestlock /usr/local/bin/
USER 999:999
ENTRYPOINT ["/usr/local/bin/digestlock"]
