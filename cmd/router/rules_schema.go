package main

import (
	"github.com/spf13/cobra"

	"github.com/millrace/millrace/engine/rules"
)

func rulesSchema(p *program) *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of rules files, for editors",
		Long: `Schema prints the JSON Schema (2020-12) of rules files as this build reads them. An editor that has it completes keys,
shows what they mean and marks what is unknown while rules are written. For the YAML language server of most editors the
first line of a rules file names it:

  # yaml-language-server: $schema=millrace.schema.json

'router rules validate' finds more: what lies between definitions, in filters and in the files that rules name.`,
		Example: `  router rules schema > millrace.schema.json`,
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			doc, err := rules.Schema(sinkKinds(nil), sourceSchemes(nil), bridgeKinds(linkProcess{}))
			if err != nil {
				return err
			}
			_, err = p.stdout.Write(doc)
			return err
		},
	}
}
