package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/spf13/cobra"
)

func topicsCommand(p *program) *cobra.Command {
	cmd := group(&cobra.Command{
		Use:     "topics",
		Aliases: []string{"topic"},
		Short:   "List, show, create and delete topics",
	})
	columns := []column{
		{"NAME", "name"}, {"PARTITIONS", "partitions"}, {"BOUND", "retain.bytes"}, {"AGE", "retain.age"}, {"EVENTS", "state.events"}, {"HELD", "state.bytes"},
	}
	cmd.AddCommand(p.listCommand("topics", columns), p.showCommand("topics", "orders"), topicsCreate(p), p.deleteCommand("topics", "orders"))
	return cmd
}

func topicsCreate(p *program) *cobra.Command {
	var file, bytes, age, whenFull, dedupe, schema string
	var partitions int
	var events int64
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Create a topic",
		Long:  "Create makes a topic from flags, or from a file that holds its keys as a rules file would, in YAML or JSON.",
		Example: `  router topics create orders
  router topics create orders --retain-bytes 256MiB --retain-age 24h --partitions 4
  router topics create orders --file orders.yaml`,
		Args: cobra.ExactArgs(1),
	}
	r := p.remoteFlags(cmd)
	f := cmd.Flags()
	f.StringVarP(&file, "file", "f", "", "read the definition from `F`; - is standard input")
	f.IntVar(&partitions, "partitions", 0, "`number` of partitions, fixed for good (default 1)")
	f.StringVar(&bytes, "retain-bytes", "", "keep at most this `size` (default 1GiB)")
	f.StringVar(&age, "retain-age", "", "keep events this `long` (default 7d)")
	f.Int64Var(&events, "retain-events", 0, "keep at most `N` events (default no bound)")
	f.StringVar(&whenFull, "when-full", "", "`drop-oldest or reject` (default drop-oldest)")
	f.StringVar(&dedupe, "dedupe", "", "how `long` a repeated id is recognised (default 2m)")
	f.StringVar(&schema, "schema", "", "JSON Schema `file` that data must match")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		doc, err := p.definition(cmd, file, args[0])
		if err != nil {
			return err
		}
		retain := child(doc, "retain")
		setIf(retain, "bytes", bytes)
		setIf(retain, "age", age)
		setIf(retain, "events", events)
		putChild(doc, "retain", retain)
		setIf(doc, "partitions", partitions)
		setIf(doc, "whenFull", whenFull)
		setIf(doc, "dedupe", dedupe)
		if schema != "" {
			b, err := os.ReadFile(schema)
			if err != nil {
				return err
			}
			if !json.Valid(b) {
				return fmt.Errorf("%s: is not JSON", schema)
			}
			doc["schema"] = json.RawMessage(b)
		}
		return p.create(cmd, r, "topics", doc)
	}
	return cmd
}
