package main

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"
)

func keysCommand(p *program) *cobra.Command {
	cmd := group(&cobra.Command{
		Use:     "keys",
		Aliases: []string{"key"},
		Short:   "List, create, rotate and revoke API keys",
	})
	cmd.AddCommand(keysList(p), keysCreate(p), keysRotate(p), keysRevoke(p))
	return cmd
}

func keysList(p *program) *cobra.Command {
	return p.listCommand("keys", []column{
		{"ID", "id"}, {"NAME", "name"}, {"ROLES", "roles"}, {"TENANT", "tenant"}, {"CREATED", "created"}, {"EXPIRES", "expires"}, {"USED", "used"},
	})
}

func keysCreate(p *program) *cobra.Command {
	var roles []string
	var tenant, expires string
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Make an API key and print it, this once",
		Long: `Create makes a key and prints it on standard output; the router keeps a hash of it, and nobody can show it again.
It is used like a token: --token, MILLRACE_TOKEN, or Authorization: Bearer.

The roles are admin, publisher, consumer, reader, operator, developer, and those of the policy that the router was started
with (--access); which topics, subscriptions and functions a role is about is said there. A tenant is what all the names
begin with that the key may use; of others it does not learn that they exist.

The first key of a router turns access control on, so it must be an admin's, unless the router was started with
MILLRACE_TOKEN or --access.`,
		Example: `  router keys create root --role admin
  router keys create ci --role publisher --expires 90d
  router keys create acme --role developer --tenant acme.
  MILLRACE_TOKEN=$(router keys create root --role admin)`,
		Args: cobra.ExactArgs(1),
	}
	r := p.remoteFlags(cmd)
	f := cmd.Flags()
	f.StringArrayVar(&roles, "role", nil, "`role` of the key; may be repeated")
	f.StringVar(&tenant, "tenant", "", "`prefix` of every name that the key may know, such as acme.")
	f.StringVar(&expires, "expires", "", "`when` it ends: a duration from now, such as 90d, or a time (RFC 3339)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(roles) == 0 {
			return usagef(cmd, "--role: name at least one; a key without a role may do nothing")
		}
		c, err := p.client(cmd, r)
		if err != nil {
			return err
		}
		body := map[string]any{"name": args[0], "roles": roles}
		setIf(body, "tenant", tenant)
		setIf(body, "expires", expires)
		doc, err := json.Marshal(body)
		if err != nil {
			return err
		}
		answer, err := c.call(cmd.Context(), "POST", c.path("keys"), doc, "Content-Type", "application/json")
		if err != nil {
			return err
		}
		return p.printKey(c, answer)
	}
	return cmd
}

// printKey prints a whole key on standard output and what is to be known of it elsewhere.
func (p *program) printKey(c *client, doc []byte) error {
	if c.json {
		return printJSON(p.stdout, doc)
	}
	var k struct{ ID, Key string }
	if err := json.Unmarshal(doc, &k); err != nil || k.Key == "" {
		return fmt.Errorf("%s answered something other than a key; is it a router?", c.base.Host)
	}
	say(p.stdout, "%s", clean(k.Key))
	say(p.stderr, "this is the only time that key %s is shown: keep it now", clean(k.ID))
	return nil
}

func keysRotate(p *program) *cobra.Command {
	var grace string
	cmd := &cobra.Command{
		Use:   "rotate ID",
		Short: "Give an API key a new secret and print it, this once",
		Long:  "Rotate makes a new secret for a key, whose roles, tenant and expiry stay. The old one is refused at once, or after --grace.",
		Example: `  router keys rotate k3v9x2m1q8zt
  router keys rotate k3v9x2m1q8zt --grace 24h`,
		Args: cobra.ExactArgs(1),
	}
	r := p.remoteFlags(cmd)
	cmd.Flags().StringVar(&grace, "grace", "", "how `long` the old one is still taken, up to 30d")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := p.client(cmd, r)
		if err != nil {
			return err
		}
		body := map[string]any{}
		setIf(body, "grace", grace)
		doc, err := json.Marshal(body)
		if err != nil {
			return err
		}
		answer, err := c.call(cmd.Context(), "POST", c.path("keys", args[0], "rotate"), doc, "Content-Type", "application/json")
		if err != nil {
			return err
		}
		return p.printKey(c, answer)
	}
	return cmd
}

func keysRevoke(p *program) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "revoke ID...",
		Short: "Revoke API keys",
		Long: `Revoke ends keys at once; connections that they have opened end within 10 s. The last key of an admin is kept where
nothing else, a token or a policy, lets an admin in.`,
		Example: "  router keys revoke k3v9x2m1q8zt",
		Args:    cobra.MinimumNArgs(1),
	}
	r := p.remoteFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := p.client(cmd, r)
		if err != nil {
			return err
		}
		for _, id := range args {
			if _, err := c.call(cmd.Context(), "DELETE", c.path("keys", id), nil); err != nil {
				return err
			}
			say(p.stderr, "revoked %s", clean(id))
		}
		return nil
	}
	return cmd
}
