package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/projections"
)

func checkCommand() *cobra.Command {
	var views bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check that all files are whole and fit together",
		Long: `Check each file of the data directory for damage, and that they fit together:
every event opens with its account's key or was erased, no view and no webhook
is ahead of the log, nothing is parked. With --views the views are made again
in a temporary file and compared. Also beside a running server; needs the
master key. If anything is wrong the exit code is 3.

That the log was not altered by someone who knows how is for 'verify' to prove.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := loadConfig(cmd)
			if err != nil {
				return err
			}
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			out := newConsole(cmd, c)
			ch, err := check(ctx, c, out, views)
			if err != nil {
				return err
			}
			return ch.print(out)
		},
	}
	addSettings(cmd.Flags(), "data", "master-key-file")
	cmd.Flags().BoolVar(&views, "views", false, "compare the views with a rebuild")
	return cmd
}

// checked is the outcome of a check.
type checked struct {
	OK       bool                `json:"ok"`
	Head     eventstore.Position `json:"head"`
	Compared int64               `json:"compared,omitzero"` // accounts, with --views
	Findings []finding           `json:"findings"`
	Unlisted int64               `json:"unlisted,omitzero"`

	readable bool // each event of the log can be read
}

// finding is something wrong with a file.
type finding struct {
	File   string `json:"file"`
	Detail string `json:"detail"`
}

// maxFindings is how many findings are listed: one damaged page can cause as
// many as there are events.
const maxFindings = 100

func (ch *checked) add(file, format string, args ...any) {
	if len(ch.Findings) == maxFindings {
		ch.Unlisted++
		return
	}
	ch.Findings = append(ch.Findings, finding{file, fmt.Sprintf(format, args...)})
}

// check checks the ledger in c.Data. An error means that it could not be
// carried out.
func check(ctx context.Context, c config, out console, compareViews bool) (checked, error) {
	var ch checked
	r, err := openReadOnly(ctx, c, out.logger())
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
	if err := ch.followers(ctx, r); err != nil {
		return ch, err
	}
	codec := domain.Codec{Keys: keys}
	if err := ch.events(ctx, r, codec, out); err != nil {
		return ch, err
	}
	// A log that cannot be read to its end would keep a rebuild waiting.
	if compareViews && ch.readable {
		if err := ch.views(ctx, r, views, codec, out); err != nil {
			return ch, err
		}
	}
	ch.OK = len(ch.Findings) == 0
	return ch, nil
}

// followers checks that nobody who follows the log is ahead of it.
func (ch *checked) followers(ctx context.Context, r *reader) error {
	delivered, err := deliveryPosition(ctx, r.dir.path(deliveryFile))
	if err != nil {
		ch.add(deliveryFile, "%v", err)
	}
	states, err := r.viewStates(ctx)
	if err != nil {
		return err
	}
	// The head last: the log goes on while the others are read.
	if ch.Head, err = r.log.Head(ctx); err != nil {
		return err
	}
	if delivered > ch.Head {
		ch.add(deliveryFile, "a webhook is at position %d, the log ends at %d", delivered, ch.Head)
	}
	for _, v := range states {
		if v.Position > ch.Head {
			ch.add(viewsFile, "the view %s is at position %d, the log ends at %d", v.Name, v.Position, ch.Head)
		}
		for _, p := range v.Parked {
			ch.add(viewsFile, "the view %s has parked %s at position %d: %s", v.Name, p.Stream, p.Position, p.Error)
		}
	}
	return nil
}

// events checks that every event up to the head can be opened and decoded, or
// that its account was erased.
func (ch *checked) events(ctx context.Context, r *reader, codec domain.Codec, out console) error {
	gone := map[eventstore.KeyID]eventstore.Position{} // keys whose erasure is not met yet
	p := out.progress("events", int64(ch.Head))
	defer p.end()
	ch.readable = true
	for page, err := range r.selected(ctx, eventsOptions{}) {
		if err != nil {
			if ctx.Err() != nil {
				return err
			}
			ch.add(logFile, "%v", err) // and what follows cannot be read
			ch.readable = false
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
				ch.add(keysFile, "the event at position %d does not open: %v", rec.Position, err)
			} else if _, known := gone[rec.KeyID]; entry.Erased && !known {
				gone[rec.KeyID] = rec.Position
			}
		}
		p.add(int64(len(page)))
	}
	for _, position := range gone {
		ch.add(keysFile, "the key of the event at position %d is gone, and no erasure says why", position)
	}
	return nil
}

func (ch checked) print(out console) error {
	var err error
	if !ch.OK {
		err = &exitError{exitFaults, fmt.Errorf("the ledger has faults: %d", int64(len(ch.Findings))+ch.Unlisted)}
	}
	if out.json {
		return errors.Join(out.document(ch), err)
	}
	for _, f := range ch.Findings {
		out.printf("%s: %s\n", f.File, f.Detail)
	}
	if ch.Unlisted > 0 {
		out.printf("and %d more\n", ch.Unlisted)
	}
	if ch.OK {
		out.printf("checked: all files are whole and fit together, %d events", ch.Head)
		if ch.Compared > 0 {
			out.printf(", %d accounts as in a rebuild", ch.Compared)
		}
		out.printf("\n")
	}
	return err
}
