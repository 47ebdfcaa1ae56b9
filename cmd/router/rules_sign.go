package main

import (
	"cmp"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/engine/rules"
)

func rulesKeygen(p *program) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "keygen",
		Short: "Make a pair of keys to sign rules with",
		Long: `Keygen writes an Ed25519 private key, which stays where rules are signed, and its public half, which routers check
with (serve --rules-key). Neither file may exist yet. Keys that openssl makes do as well:

  openssl genpkey -algorithm ed25519 -out key.pem
  openssl pkey -in key.pem -pubout -out pub.pem`,
		Example: `  router rules keygen --key key.pem --pub pub.pem`,
		Args:    cobra.NoArgs,
	}
	var private, public string
	cmd.Flags().StringVar(&private, "key", "key.pem", "`file` for the private key")
	cmd.Flags().StringVar(&public, "pub", "pub.pem", "`file` for the public key")
	cmd.RunE = func(*cobra.Command, []string) error {
		pub, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return err
		}
		secret, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return err
		}
		open, err := x509.MarshalPKIXPublicKey(pub)
		if err != nil {
			return err
		}
		if err := writeNew(private, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600); err != nil {
			return err
		}
		if err := writeNew(public, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: open}), 0o644); err != nil {
			return errors.Join(err, os.Remove(private))
		}
		say(p.stdout, "key %s: private in %s, public in %s", rules.KeyID(pub), clean(private), clean(public))
		return nil
	}
	return cmd
}

// writeNew writes a file that does not exist yet.
func writeNew(path string, text []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

func rulesSign(p *program) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "sign PATH",
		Short: "Sign rules for routers that fetch them from a URL",
		Long: `Sign checks a rules file, or a folder of them, and writes one signed file with the rules and the modules, scripts and
schemas that they name. A web server that serves it is all that routers need: 'serve --rules URL --rules-key pub.pem'.
Variables stay references: they are those of the router.

Each file has a version, and no router takes one that is older than what it has. It is the time in milliseconds unless
--version gives a number, which must then grow from one to the next, such as that of a build.`,
		Example: `  router rules sign rules/ --key key.pem -o rules.bundle
  router rules sign rules.yaml --key key.pem -o rules.bundle --version 417 --expires 30d`,
		Args: cobra.ExactArgs(1),
	}
	var key, out, until string
	var version int64
	f := cmd.Flags()
	f.StringVar(&key, "key", "", "`file` of the Ed25519 private key (PEM)")
	f.StringVarP(&out, "out", "o", "", "`file` to write")
	f.Int64Var(&version, "version", 0, "`number` of the version (the time in milliseconds)")
	f.StringVar(&until, "expires", "", "how `long` routers may take it, such as 30d; those that have it keep it (for ever)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		expires, err := parseBack(cmp.Or(until, "0s"))
		switch {
		case err != nil:
			return usagef(cmd, "--expires %s: want how long, such as 30d or 12h", clean(until))
		case key == "" || out == "":
			return usagef(cmd, "want --key and -o, such as: router rules sign rules/ --key key.pem -o rules.bundle")
		case version < 0 || f.Changed("version") && version == 0:
			return usagef(cmd, "--version %d: want a number from 1 on", version)
		case expires < 0:
			return usagef(cmd, "--expires %s: want a time to come", expires)
		}
		text, err := os.ReadFile(key)
		if err != nil {
			return fmt.Errorf("--key: %w", err)
		}
		private, err := rules.ParsePrivateKey(text)
		if err != nil {
			return fmt.Errorf("--key %s: %w", clean(key), err)
		}
		check, done := scriptChecker(cmd.Context())
		bundle, _, err := rules.Pack(cmd.Context(), args[0], rules.Options{Sinks: sinkKinds(nil), Schemes: sourceSchemes(nil), Bridges: bridgeKinds(linkProcess{}), Getenv: p.variables(), CheckModule: check})
		if err = errors.Join(err, done()); err != nil {
			return err
		}
		now := time.Now()
		seal := rules.Seal{Version: version, Signed: now, Key: rules.KeyID(private.Public().(ed25519.PublicKey))}
		if version == 0 {
			seal.Version = now.UnixMilli()
		}
		if expires > 0 {
			seal.Expires = now.Add(expires)
		}
		file, err := rules.Sign(bundle, private, seal)
		if err != nil {
			return err
		}
		if err := writeWhole(out, file, 0o644); err != nil {
			return err
		}
		say(p.stdout, "%s: version %d, %s, signed with key %s", clean(out), seal.Version, sizeText(int64(len(file))), seal.Key)
		return nil
	}
	return cmd
}

// variables are the router's own, for ${env:NAME}; an empty one counts as not set.
func (p *program) variables() func(name string) (string, bool) {
	return func(name string) (string, bool) { v := p.env(name); return v, v != "" }
}

// writeWhole writes a file so that whoever reads it meanwhile, such as a web server, has the old one or the new one.
func writeWhole(path string, text []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*.tmp")
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
