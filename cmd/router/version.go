package main

import (
	"encoding/json"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
)

// A build is what this program was made from.
type build struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"` // of the version control system
	Modified bool   `json:"modified,omitempty"` // with changes that were not committed
	Time     string `json:"time,omitempty"`     // of the commit
	Go       string `json:"go"`
	OS       string `json:"os"`
	Arch     string `json:"arch"`
}

// linked is version, revision and time of the commit, with commas between, as the linker of a release sets it: a build that
// is the same wherever it is made takes nothing from its folder. Nothing else writes it.
var linked string

func thisBuild() build {
	b := build{Version: "unknown", Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	if info.Main.Version != "" {
		b.Version = info.Main.Version
	}
	if parts := strings.Split(linked, ","); len(parts) == 3 {
		b.Version, b.Revision, b.Time = parts[0], parts[1], parts[2]
		return b
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Revision = s.Value
		case "vcs.time":
			b.Time = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	return b
}

func versionCommand(p *program) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print what this program was built from",
		Args:  cobra.NoArgs,
	}
	var output string
	p.outputFlag(cmd, &output)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		b := thisBuild()
		asJSON, err := asJSON(cmd, output)
		if err != nil {
			return err
		}
		if asJSON {
			doc, err := json.Marshal(b)
			if err != nil {
				return err
			}
			return printJSON(p.stdout, doc)
		}
		say(p.stdout, "millrace %s", b.Version)
		if b.Revision != "" {
			dirty := ""
			if b.Modified {
				dirty = ", with changes"
			}
			say(p.stdout, "revision %s%s", b.Revision, dirty)
		}
		say(p.stdout, "%s %s/%s", b.Go, b.OS, b.Arch)
		return nil
	}
	return cmd
}
