package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"
)

func healthCommand(p *program) *cobra.Command {
	var ready bool
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "health",
		Short: "Ask a router whether it answers; for health checks of containers",
		Long: `Health exits with 0 if a router answers, else with 1, and prints nothing but what is wrong. With --ready it wants one that
takes traffic: it has started, and does not drain. It needs no token, and no other program: images without a shell have none.`,
		Example: `  router health
  router health --ready --server http://127.0.0.1:8080`,
		Args: cobra.NoArgs,
	}
	r := p.serverFlags(cmd)
	cmd.Flags().BoolVar(&ready, "ready", false, "want a router that takes traffic")
	cmd.Flags().DurationVar(&wait, "timeout", 3*time.Second, "how `long` to wait for an answer")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := p.client(cmd, r)
		if err != nil {
			return err
		}
		c.token = "" // it is not asked for, and where the check runs it may be an old one
		ctx, cancel := context.WithTimeout(cmd.Context(), wait)
		defer cancel()
		path := "healthz"
		if ready {
			path = "readyz"
		}
		_, err = c.call(ctx, "GET", c.base.JoinPath(path), nil)
		return err
	}
	return cmd
}
