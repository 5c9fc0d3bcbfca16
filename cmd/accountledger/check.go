package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"accountledger/cmd/accountledger/cli"
	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/eventstore/seal"
	"accountledger/projections"
	"accountledger/projections/webhooks"
)

func checkCommand() *cobra.Command {
	var views bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check that the files are undamaged and consistent",
		Long: `Check the files of the data directory for damage and consistency: every event
can be decrypted with its account's key or was erased, the claims that keep
identifiers unique are those of the accounts, no view and no webhook is ahead of
the log, and no stream is parked. Identifiers that several accounts have since
before they were refused are noted, and are no fault. With --views, rebuild the
account view in a temporary file and compare it. The server may run meanwhile.
The command needs the master key. The exit code is 3 if it finds a fault.

This command does not detect deliberate changes of the log; 'verify' does.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := cli.Load(cmd)
			if err != nil {
				return err
			}
			ctx, stop := cli.Interruptible(cmd.Context())
			defer stop()
			out := cli.NewConsole(cmd, c)
			ch, err := check(ctx, c, out, views)
			if err != nil {
				return err
			}
			return ch.print(out)
		},
	}
	cli.AddSettings(cmd.Flags(), "data", "master-key-file")
	cmd.Flags().BoolVar(&views, "views", false, "compare the account view with a rebuild")
	return cmd
}

// checked is the outcome of a check.
type checked struct {
	OK       bool                `json:"ok"`
	Head     eventstore.Position `json:"head"`
	Compared int64               `json:"compared,omitzero"` // accounts, with --views
	Findings []finding           `json:"findings"`
	Unlisted int64               `json:"unlisted,omitzero"`
	Notes    []finding           `json:"notes,omitzero"` // what should be looked at but is no fault

	readable bool // every event of the log could be read
}

// finding is something wrong with a file.
type finding struct {
	File   string `json:"file"`
	Detail string `json:"detail"`
}

// maxFindings limits the list of findings: one damaged page may cause a finding
// for every event.
const maxFindings = 100

func (ch *checked) add(file, format string, args ...any) {
	if len(ch.Findings) == maxFindings {
		ch.Unlisted++
		return
	}
	ch.Findings = append(ch.Findings, finding{file, fmt.Sprintf(format, args...)})
}

// note adds what an operator should know and what is no fault.
func (ch *checked) note(file, detail string) {
	if len(ch.Notes) < maxFindings {
		ch.Notes = append(ch.Notes, finding{file, detail})
	}
}

// check checks the ledger in c.Data. It returns an error only if it could not
// complete the check.
func check(ctx context.Context, c cli.Config, out cli.Console, compareViews bool) (checked, error) {
	var ch checked
	r, err := openReadOnly(ctx, c, out.Logger())
	if err != nil {
		return ch, err
	}
	defer r.close()
	keys, err := r.keys(ctx)
	if err != nil {
		return ch, err
	}
	defer keys.Close()
	views, err := projections.OpenReader(ctx, r.dir.path(viewsFile))
	if err != nil {
		return ch, err
	}
	defer views.Close()

	for _, file := range []struct {
		name  string
		check func(context.Context) error
	}{
		{logFile, func(ctx context.Context) error {
			found, err := r.log.Check(ctx)
			for _, f := range found {
				ch.add(logFile, "%s", f)
			}
			return err
		}},
		{keysFile, keys.Check},
		{viewsFile, views.Check},
		{deliveryFile, func(ctx context.Context) error { return checkDatabase(ctx, r.dir.path(deliveryFile)) }},
	} {
		if err := file.check(ctx); err != nil {
			ch.add(file.name, "%v", err)
		}
		if err := ctx.Err(); err != nil {
			return ch, err
		}
	}
	if err := ch.sealed(ctx, r, keys); err != nil {
		return ch, err
	}
	if err := ch.followers(ctx, r); err != nil {
		return ch, err
	}
	codec := domain.Codec{Keys: keys}
	if err := ch.events(ctx, r, codec, out); err != nil {
		return ch, err
	}
	if ch.readable {
		if err := ch.claims(ctx, r, codec, out); err != nil {
			return ch, err
		}
	}
	// A rebuild would wait forever for events that cannot be read.
	if compareViews && ch.readable {
		if err := ch.views(ctx, r, views, codec, out); err != nil {
			return ch, err
		}
	}
	ch.OK = len(ch.Findings) == 0
	return ch, nil
}

// sealed checks that the log is what its sealed head says, and that keys.db is that
// of the ledger and not behind the log.
func (ch *checked) sealed(ctx context.Context, r *reader, keys *seal.Keys) error {
	known, err := r.verifiers("")
	if err != nil {
		return err
	}
	owner, err := keys.Ledger(ctx)
	if err != nil {
		return err
	}
	if owner != "" && owner != ledgerID(known[0].Name()) {
		ch.add(keysFile, "the file belongs to another ledger")
		return nil
	}
	_, err = r.log.checkHead(ctx, keys, true)
	if err == nil || ctx.Err() != nil {
		return ctx.Err()
	}
	file := logFile
	if _, behind := errors.AsType[*refusal](explain(r.config, err)); behind && !errors.Is(err, eventstore.ErrTampered) {
		file = keysFile
	}
	ch.add(file, "%v", err)
	return nil
}

// followers checks that no view and no webhook is ahead of the log, or has
// followed another one.
func (ch *checked) followers(ctx context.Context, r *reader) error {
	delivered, err := webhooks.Marks(ctx, r.dir.path(deliveryFile))
	if err != nil {
		ch.add(deliveryFile, "%v", err)
	}
	viewed, err := projections.Marks(ctx, r.dir.path(viewsFile))
	if err != nil {
		ch.add(viewsFile, "%v", err)
	}
	states, err := r.viewStates(ctx)
	if err != nil {
		return err
	}
	// Read the head last: a server may append while the positions are read.
	if ch.Head, err = r.log.Head(ctx); err != nil {
		return err
	}
	known, err := r.verifiers("")
	if err != nil {
		return err
	}
	log := prefix{r.log, ch.Head}
	for file, marks := range map[string][]projections.Mark{deliveryFile: delivered, viewsFile: viewed} {
		for _, m := range marks {
			err := m.Check(ctx, r.dir.path(file), ledgerID(known[0].Name()), log)
			if e, ok := errors.AsType[*projections.AheadError](err); ok {
				ch.add(file, "%v", e)
			} else if err != nil {
				ch.add(file, "%v", err)
			}
		}
	}
	for _, v := range states {
		for _, p := range v.Parked {
			ch.add(viewsFile, "the view %s has parked %s at position %d: %s", v.Name, p.Stream, p.Position, p.Error)
		}
	}
	return nil
}

// events checks that every event up to the head can be decrypted and decoded, or
// that its account was erased.
func (ch *checked) events(ctx context.Context, r *reader, codec domain.Codec, out cli.Console) error {
	gone := map[eventstore.KeyID]eventstore.Position{} // missing keys whose erasure was not found yet
	p := out.Progress("events", int64(ch.Head))
	defer p.End()
	ch.readable = true
	for page, err := range r.selected(ctx, eventsOptions{}) {
		if err != nil {
			if ctx.Err() != nil {
				return err
			}
			ch.add(logFile, "%v", err)
			ch.readable = false // neither can the events that follow
			break
		}
		for _, rec := range page {
			if domain.Is[domain.AccountErased](&rec) {
				if key, ok := domain.ErasedKey(rec.Type, rec.Clear); ok {
					delete(gone, key)
				}
			}
			entry, err := codec.Decode(rec)
			if err != nil {
				ch.add(keysFile, "the event at position %d cannot be decrypted: %v", rec.Position, err)
			} else if _, known := gone[rec.KeyID]; entry.Erased && !known {
				gone[rec.KeyID] = rec.Position
			}
		}
		p.Add(int64(len(page)))
	}
	for _, position := range gone {
		ch.add(keysFile, "the key of the event at position %d is missing, and no erasure explains it", position)
	}
	return nil
}

func (ch checked) print(out cli.Console) error {
	var err error
	if !ch.OK {
		err = cli.Exitf(cli.ExitFaults, "the ledger has faults: %d", int64(len(ch.Findings))+ch.Unlisted)
	}
	if out.JSON {
		return errors.Join(out.Document(ch), err)
	}
	for _, f := range ch.Findings {
		out.Printf("%s: %s\n", f.File, f.Detail)
	}
	if ch.Unlisted > 0 {
		out.Printf("and %d more\n", ch.Unlisted)
	}
	for _, n := range ch.Notes {
		out.Printf("note: %s: %s\n", n.File, n.Detail)
	}
	if ch.OK {
		out.Printf("checked: all files are undamaged and consistent, %d events", ch.Head)
		if ch.Compared > 0 {
			out.Printf(", %d accounts equal a rebuild", ch.Compared)
		}
		out.Printf("\n")
	}
	return err
}
