// Command protogen makes the Go code of sdk/client/millracev1 from the .proto files in sdk/client/proto. Compiler and
// plugins are Go programs of the versions in go.mod, so that nothing must be installed.
//
//	go run ./scripts/protogen            # from the repository's root
package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bufbuild/protocompile"
	"github.com/bufbuild/protocompile/linker"
	"github.com/bufbuild/protocompile/protoutil"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
)

// Where things are, from the repository's root.
const (
	sources = "sdk/client/proto"
	others  = sources + "/third_party"
	out     = "sdk/client/millracev1"
)

// elsewhere are the Go packages of files that are not the router's own. The comment of each in third_party says why.
var elsewhere = map[string]string{
	"cloudevent.proto":        "github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb",
	"google/rpc/status.proto": "google.golang.org/genproto/googleapis/rpc/status",
}

func main() {
	made, err := generate(context.Background(), ".")
	if err == nil {
		for name, text := range made {
			err = cmp.Or(err, os.WriteFile(name, []byte(text), 0o644))
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "protogen:", err)
		os.Exit(1)
	}
}

// compile reads the router's .proto files below root, with their comments.
func compile(ctx context.Context, root string) (linker.Files, error) {
	found, err := filepath.Glob(filepath.Join(root, sources, "millrace/v1/*.proto"))
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%s: no .proto file; run this from the repository's root", filepath.Join(root, sources))
	}
	names := make([]string, len(found))
	for i, path := range found {
		names[i] = "millrace/v1/" + filepath.Base(path)
	}
	c := protocompile.Compiler{
		Resolver: protocompile.WithStandardImports(&protocompile.SourceResolver{
			ImportPaths: []string{filepath.Join(root, sources), filepath.Join(root, others)},
		}),
		SourceInfoMode: protocompile.SourceInfoStandard,
	}
	return c.Compile(ctx, names...)
}

// generate returns the files that belong into out, by their path below root, and writes none.
func generate(ctx context.Context, root string) (map[string]string, error) {
	files, err := compile(ctx, root)
	if err != nil {
		return nil, err
	}
	request := &pluginpb.CodeGeneratorRequest{
		CompilerVersion: &pluginpb.Version{Major: proto.Int32(5), Minor: proto.Int32(29), Patch: proto.Int32(0)},
	}
	params := []string{"module=github.com/millrace/millrace/sdk/client/millracev1"}
	for file, pkg := range elsewhere {
		params = append(params, "M"+file+"="+pkg)
	}
	slices.Sort(params)
	request.Parameter = proto.String(strings.Join(params, ","))
	seen := map[string]bool{}
	for _, f := range files {
		request.FileToGenerate = append(request.FileToGenerate, f.Path())
		withImports(f, seen, &request.ProtoFile)
	}
	made := map[string]string{}
	for _, plugin := range []string{"protoc-gen-go", "protoc-gen-go-grpc"} {
		if err := run(ctx, root, plugin, request, made); err != nil {
			return nil, err
		}
	}
	return made, nil
}

// withImports appends f behind what it imports.
func withImports(f protoreflect.FileDescriptor, seen map[string]bool, to *[]*descriptorpb.FileDescriptorProto) {
	if seen[f.Path()] {
		return
	}
	seen[f.Path()] = true
	for i := range f.Imports().Len() {
		withImports(f.Imports().Get(i).FileDescriptor, seen, to)
	}
	*to = append(*to, protoutil.ProtoFromFileDescriptor(f))
}

func run(ctx context.Context, root, plugin string, request *pluginpb.CodeGeneratorRequest, made map[string]string) error {
	in, err := proto.Marshal(request)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "tool", plugin)
	var stdout, stderr bytes.Buffer
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = root, bytes.NewReader(in), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("go tool %s: %w: %s", plugin, err, stderr.Bytes())
	}
	var response pluginpb.CodeGeneratorResponse
	if err := proto.Unmarshal(stdout.Bytes(), &response); err != nil {
		return fmt.Errorf("go tool %s: %w", plugin, err)
	}
	if response.Error != nil {
		return fmt.Errorf("go tool %s: %s", plugin, response.GetError())
	}
	for _, f := range response.File {
		made[filepath.Join(root, out, filepath.Base(f.GetName()))] = f.GetContent()
	}
	return nil
}
