package main

import (
	"context"
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/engine/rules"
	"github.com/millrace/millrace/plugins"
)

func rulesCommand(p *program) *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "rules",
		Short: "Check, show, compare and apply rules",
	})
	cmd.AddCommand(rulesValidate(p), rulesShow(p), rulesTest(p), rulesSchema(p), rulesBacktest(p), rulesSign(p), rulesKeygen(p),
		rulesDiff(p), rulesApply(p), rulesRollback(p), rulesRevisions(p))
	return cmd
}

// parseRules reads rules as serve would, without opening anything that they name: check, if it is not nil, looks at
// the modules.
func (p *program) parseRules(cmd *cobra.Command, path string, check func(module []byte) error) (*rules.Set, error) {
	getenv := func(name string) (string, bool) { v := p.env(name); return v, v != "" }
	return rules.Parse(cmd.Context(), path, rules.Options{Sinks: sinkKinds(nil), Schemes: sourceSchemes(nil), Bridges: bridgeKinds(linkProcess{}), Getenv: getenv, CheckModule: check})
}

// scriptChecker returns what loads the scripts among modules, whose mistakes nothing else would find before a router
// starts. Its host is made for the first of them; done closes it.
func scriptChecker(ctx context.Context) (check func(module []byte) error, done func() error) {
	var host *plugins.Host
	check = func(module []byte) (err error) {
		if _, _, ok := plugins.ScriptOf(module); !ok {
			return nil
		}
		if host == nil {
			if host, err = authorHost(ctx, plugins.Options{}); err != nil {
				return err
			}
		}
		if _, err = host.Describe(ctx, module, event.Function{Name: "script"}); err != nil {
			return errors.New(strings.TrimPrefix(err.Error(), "function script: ")) // the rules say which
		}
		return nil
	}
	return check, func() error {
		if host == nil {
			return nil
		}
		return host.Close(ctx)
	}
}

func rulesValidate(p *program) *cobra.Command {
	return &cobra.Command{
		Use:   "validate PATH",
		Short: "Check a rules file, or a folder of them, without a router",
		Long: `Validate reads rules as 'serve' does and prints everything wrong with them, each as file:line:column with the line that
it is about. Secrets in it are not shown. Variables are those of this shell. Scripts are loaded once, which finds their
mistakes.`,
		Example: `  router rules validate millrace.yaml`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			check, done := scriptChecker(cmd.Context())
			set, err := p.parseRules(cmd, args[0], check)
			if err = errors.Join(err, done()); err != nil {
				return err
			}
			say(p.stdout, "%s: good (%s, %s, %s)", clean(args[0]), plural(len(set.Topics), "topic"),
				plural(len(set.Functions), "function"), plural(len(set.Subscriptions), "subscription"))
			return nil
		},
	}
}

func rulesShow(p *program) *cobra.Command {
	var effective bool
	cmd := &cobra.Command{
		Use:   "show [PATH]",
		Short: "Show rules: of a file, or those in force on a running router",
		Long: `Show prints what a rules file or folder defines; without PATH what is in force on the running router. With --effective
every key is printed, with its default where the file leaves it out. Secrets are never shown.`,
		Example: `  router rules show millrace.yaml --effective
  router rules show -o json`,
		Args: cobra.MaximumNArgs(1),
	}
	r := p.remoteFlags(cmd)
	cmd.Flags().BoolVar(&effective, "effective", false, "with all defaults")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := p.client(cmd, r)
		if err != nil {
			return err
		}
		var doc []byte
		if len(args) == 0 {
			if effective {
				return usagef(cmd, "--effective needs PATH: what a running router shows is complete already")
			}
			doc, err = c.call(cmd.Context(), "GET", c.path("rules"), nil)
		} else {
			var set *rules.Set
			if set, err = p.parseRules(cmd, args[0], nil); err == nil {
				doc = set.JSON(effective)
			}
		}
		if err != nil {
			return err
		}
		return p.printDocument(c.json, doc)
	}
	return cmd
}
