package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/engine/connector/webhook"
)

func webhooksCommand(p *program) *cobra.Command {
	cmd := group(&cobra.Command{Use: "webhooks", Short: "Make and show the keys that webhooks are signed with"})
	cmd.AddCommand(webhooksKeygen(p), webhooksPublic(p), webhooksJWKS(p))
	return cmd
}

func webhooksKeygen(p *program) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "keygen",
		Short: "Make a private key for signatures that receivers check with a public one",
		Long: `Keygen writes an Ed25519 private key of Standard Webhooks, whsk_…, to a file that does not exist yet, and prints its public
half, whpk_…, for receivers. The key stands in a subscription's deliver.webhook.secrets as a reference.`,
		Example: `  router webhooks keygen --key webhook.key
  # millrace.yaml: secrets: ["${file:webhook.key}"]`,
		Args: cobra.NoArgs,
	}
	var file string
	cmd.Flags().StringVar(&file, "key", "webhook.key", "`file` for the private key")
	cmd.RunE = func(*cobra.Command, []string) error {
		public, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return err
		}
		if err := writeNew(file, []byte(webhook.FormatPrivateKey(private)+"\n"), 0o600); err != nil {
			return err
		}
		say(p.stdout, "%s", webhook.FormatPublicKey(public))
		return nil
	}
	return cmd
}

func webhooksPublic(p *program) *cobra.Command {
	return &cobra.Command{
		Use:   "public FILE...",
		Short: "Print the public keys of private ones, for receivers",
		Long: `Public reads private keys, whsk_…, one in each file (- is standard input), and prints the public half of each, whpk_…, which is
no secret.`,
		Example: `  router webhooks public webhook.key`,
		Args:    cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			for _, file := range args {
				text, err := p.keyFile(file)
				if err != nil {
					return err
				}
				key, err := webhook.ParsePrivateKey(strings.TrimSpace(text))
				if err != nil {
					return fmt.Errorf("%s: %w", clean(file), err)
				}
				say(p.stdout, "%s", webhook.FormatPublicKey(key.Public().(ed25519.PublicKey)))
			}
			return nil
		},
	}
}

func webhooksJWKS(p *program) *cobra.Command {
	return &cobra.Command{
		Use:   "jwks FILE...",
		Short: "Print the JWKS document with which receivers check ID tokens",
		Long: `Jwks reads the private keys of deliver.webhook.auth.oidc (PEM; - is standard input) and prints their public halves as a JWKS
document (RFC 7517), to be served to receivers, below the issuer's URL as a rule. While a key is changed it has both.`,
		Example: `  openssl genpkey -algorithm ed25519 -out oidc.key
  router webhooks jwks oidc.key > jwks.json`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			keys := []map[string]string{}
			for _, file := range args {
				text, err := p.keyFile(file)
				if err != nil {
					return err
				}
				key, err := webhook.ParseTokenKey(text)
				if err != nil {
					return fmt.Errorf("%s %w", clean(file), err)
				}
				keys = append(keys, key.JWK())
			}
			doc, err := json.Marshal(map[string]any{"keys": keys})
			if err != nil {
				return err
			}
			return printJSON(p.stdout, doc)
		},
	}
}

// keyFile reads a file with a key; - is standard input.
func (p *program) keyFile(file string) (string, error) {
	in := p.stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return "", err
		}
		defer f.Close()
		in = f
	}
	const most = 64 << 10
	text, err := io.ReadAll(io.LimitReader(in, most+1))
	if err == nil && len(text) > most {
		err = errors.New("has over 64 KiB; want one key")
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", clean(file), err)
	}
	return string(text), nil
}
