// Package millracev1 is the router's gRPC API as Go code, made from the files in sdk/client/proto. Package client, above it, is
// what programs use; this one is for what that does not show.
package millracev1

//go:generate sh -c "cd ../../.. && go run ./scripts/protogen"
