# The router alone, on nothing: no shell, no package manager, no user but one without rights.
#   docker build -t millrace --build-arg VERSION=$(git describe --tags --always) .
#   docker run -v millrace:/data -v ./rules:/etc/millrace:ro -e MILLRACE_TOKEN -p 8080:8080 millrace
ARG GO_VERSION=1.26.8
FROM --platform=$BUILDPLATFORM golang:${GO_VERSION}-bookworm AS build
ARG TARGETOS TARGETARCH
ARG VERSION=unknown REVISION= TIME=
WORKDIR /src
COPY go.mod go.sum ./
COPY sdk/client/go.mod sdk/client/go.sum sdk/client/
RUN go mod download
COPY . .
RUN GOOS=wasip1 GOARCH=wasm go build -C examples/quickstart/functions/redact -buildmode=c-shared -trimpath -buildvcs=false \
    -ldflags='-s -w -buildid=' -o ../redact.wasm . \
 && CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH go build -trimpath -buildvcs=false \
    -ldflags="-s -w -buildid= -X main.linked=$VERSION,$REVISION,$TIME" -o /out/router ./cmd/router \
 && mkdir /out/own && mkdir -m 0700 /out/own/data /out/own/tmp

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/router /router
# /data and /tmp. Copied by themselves they would have the builder's mode, which others can read.
COPY --from=build --chown=65532:65532 /out/own/ /
USER 65532:65532
ENV STATE_DIRECTORY=/data
VOLUME /data
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 CMD ["/router", "health"]
ENTRYPOINT ["/router"]
CMD ["serve", "--listen", "0.0.0.0:8080"]
