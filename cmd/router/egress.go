package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/engine/egress"
	"github.com/millrace/millrace/engine/event"
)

// An egressFile is the policy file of a process (--egress); its path is "" for none.
type egressFile struct {
	watchedFile
	getenv func(string) (string, bool)
}

func newEgressFile(path string, getenv func(string) (string, bool)) *egressFile {
	return &egressFile{watchedFile{path: path}, getenv}
}

// load reads the policy; it is the zero one where there is no file.
func (f *egressFile) load() (*egress.Policy, error) {
	if f.path == "" {
		return &egress.Policy{}, nil
	}
	text, err := f.readTop()
	if err != nil {
		return nil, fmt.Errorf("--egress: %w", err)
	}
	return egress.ParsePolicy(f.path, text, f.read, f.getenv)
}

// open makes the dialer of a process.
func (f *egressFile) open(private bool) (*egress.Dialer, error) {
	p, err := f.load()
	if err != nil {
		return nil, err
	}
	return egress.New(egress.Options{AllowPrivate: private, Policy: p})
}

// reload puts what the file says now in force. A bad policy changes nothing.
func (f *egressFile) reload(d *egress.Dialer, log *slog.Logger) {
	p, err := f.load()
	if err == nil {
		err = d.SetPolicy(p)
	}
	if news := f.news(err); err != nil {
		if news {
			log.Error("the egress policy was not reloaded; that before is in force", "path", f.path, "error", err)
		}
		return
	}
	log.Info("the egress policy was reloaded", "path", f.path, "allow", len(p.Allow), "deny", len(p.Deny))
}

func egressCommand(p *program) *cobra.Command {
	cmd := group(&cobra.Command{Use: "egress", Short: "Say where a router may connect to"})
	cmd.AddCommand(egressCheck(p))
	return cmd
}

func egressCheck(p *program) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check URL",
		Short: "Say whether a URL may be a target, why, and what it resolves to",
		Long: `Check judges a URL as a router with the same --egress and --allow-private-targets would: the lists, then the addresses
that the host resolves to here and now. It connects to nothing but the resolver. It exits with 1 where the URL is refused.`,
		Example: `  router egress check https://hooks.example.com/in
  router egress check --egress egress.yaml http://10.1.2.3:8080/`,
		Args: cobra.ExactArgs(1),
	}
	var file, output string
	var private bool
	cmd.Flags().StringVar(&file, "egress", "", "`file` of the policy, as with serve")
	cmd.Flags().BoolVar(&private, "allow-private-targets", false, "as with serve")
	p.outputFlag(cmd, &output)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		asJSON, err := asJSON(cmd, output)
		if err != nil {
			return err
		}
		d, err := newEgressFile(file, p.variables()).open(private)
		if err != nil {
			return err
		}
		j, err := d.Judge(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		if asJSON {
			doc, err := json.Marshal(j)
			if err != nil {
				return err
			}
			if err := printJSON(p.stdout, doc); err != nil {
				return err
			}
		} else {
			printJudgement(p.stdout, j)
		}
		if !j.Allowed {
			return errSaid
		}
		return nil
	}
	return cmd
}

func printJudgement(w io.Writer, j egress.Judgement) {
	if j.Allowed {
		say(w, "allowed  %s", clean(j.URL))
	} else {
		say(w, "refused  %s", clean(j.URL))
	}
	for _, a := range j.Addresses {
		if a.Allowed {
			say(w, "         %s", a.Addr)
		} else {
			say(w, "         %s is refused: %s", a.Addr, clean(a.Why))
		}
	}
	if !j.Allowed && len(j.Addresses) == 0 {
		say(w, "         %s", clean(j.Why))
	}
	switch {
	case j.Names:
		say(w, "         through %s, which is given the name and looks it up itself", clean(j.Proxy))
	case j.Proxy != "":
		say(w, "         through %s, which is given the address", clean(j.Proxy))
	}
}

// denied turns the refusal of a target into what protocols know.
func denied(err error) error {
	if errors.Is(err, egress.ErrBlocked) {
		return fmt.Errorf("%w: %w", event.ErrDenied, err)
	}
	return err
}
