package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/event"
)

func accessCommand(p *program) *cobra.Command {
	cmd := group(&cobra.Command{Use: "access", Short: "Show and ask an access policy: who may do what"})
	cmd.AddCommand(accessShow(p), accessCheck(p))
	return cmd
}

// policyOf reads the policy file that is named, nil for the built-in roles alone.
func (p *program) policyOf(path string) (*access.Policy, error) {
	if path == "" {
		return nil, nil
	}
	return newPolicyFile(path, p.variables()).load()
}

func accessShow(p *program) *cobra.Command {
	return &cobra.Command{
		Use:   "show [FILE]",
		Short: "Print who may do what by a policy file, as a table",
		Long: `Show checks a policy file, as serve --access does, and prints it: every role with its actions on names, then whose
tokens and certificates come in as what. Without a file it prints the built-in roles. It shows no secret.`,
		Example: `  router access show
  router access show access.yaml`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			path := ""
			if len(args) > 0 {
				path = args[0]
			}
			policy, err := p.policyOf(path)
			if err != nil {
				return err
			}
			return policy.Table(p.stdout)
		},
	}
}

func accessCheck(p *program) *cobra.Command {
	var roles []string
	var tenant, file, output string
	cmd := &cobra.Command{
		Use:   "check ACTION [KIND NAME]",
		Short: "Say whether somebody of a role may do something, and why",
		Long: `Check asks whether who has the roles may do an action: publish, read, consume, operate, manage, deploy, invoke, on a topic,
subscription or function of a name, or admin, on the whole router. It exits with 1 where he may not.`,
		Example: `  router access check --role publisher publish topic orders
  router access check --access access.yaml --role orders-writer --tenant acme. consume subscription acme.workers
  router access check --role developer admin`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 && len(args) != 3 {
				return errors.New("want an action, and but for admin a kind (topic, subscription or function) and a name")
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&file, "access", "", "policy `file`, as with serve")
	f.StringArrayVar(&roles, "role", nil, "`role` that is asked about; may be repeated")
	f.StringVar(&tenant, "tenant", "", "`prefix` of every name that may be known")
	p.outputFlag(cmd, &output)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		asJSON, err := asJSON(cmd, output)
		if err != nil {
			return err
		}
		kind, name := access.Router, ""
		if len(args) == 3 {
			kinds := map[string]access.Kind{"topic": access.Topic, "subscription": access.Subscription, "function": access.Function}
			k, ok := kinds[args[1]]
			if !ok {
				return usagef(cmd, "%q: want topic, subscription or function", args[1])
			}
			if kind, name = k, args[2]; event.CheckName(args[1], name) != nil {
				return event.CheckName(args[1], name)
			}
		}
		policy, err := p.policyOf(file)
		if err != nil {
			return err
		}
		who, err := principalOf(cmd.Context(), policy, roles, tenant)
		if err != nil {
			return err
		}
		x := who.Explain(access.Action(args[0]), kind, name)
		if asJSON {
			doc, err := json.Marshal(x)
			if err != nil {
				return err
			}
			if err := printJSON(p.stdout, doc); err != nil {
				return err
			}
		} else {
			say(p.stdout, "%s: %s", map[bool]string{true: "yes", false: "no"}[x.Allowed], clean(x.Why))
			if !x.Allowed && !x.Seen {
				say(p.stdout, "it is answered as what does not exist")
			}
		}
		if !x.Allowed {
			return errSaid
		}
		return nil
	}
	return cmd
}

// principalOf is who has a key of the roles.
func principalOf(ctx context.Context, policy *access.Policy, roles []string, tenant string) (*access.Principal, error) {
	g, err := access.New(access.Options{Policy: policy, Keys: noKeys{}, HTTP: func(context.Context, string, int64) ([]byte, error) {
		return nil, errors.New("nothing is fetched here")
	}})
	if err != nil {
		return nil, err
	}
	_, key, err := g.CreateKey(ctx, nil, access.Key{Name: "who-asks", Roles: roles, Tenant: tenant})
	if err != nil {
		return nil, fmt.Errorf("--role, --tenant: %w", err)
	}
	return g.Authenticate(ctx, access.Credentials{Bearer: key})
}

// noKeys keeps nothing: a key lives as long as its guard.
type noKeys struct{}

// Keys returns none.
func (noKeys) Keys(context.Context) ([]access.Key, error) { return nil, nil }

// PutKey keeps nothing.
func (noKeys) PutKey(context.Context, access.Key) error { return nil }

// DeleteKey has nothing to remove.
func (noKeys) DeleteKey(context.Context, string) error { return nil }
