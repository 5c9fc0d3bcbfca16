package main

import (
	"bufio"
	"context"
	"errors"
	"iter"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"accountledger/cmd/accountledger/cli"
	"accountledger/domain"
	"accountledger/eventstore"
)

// eventsOptions selects the events to print and how to print them.
type eventsOptions struct {
	after  int64
	sub    string
	follow bool
	open   bool
}

func eventsCommand() *cobra.Command {
	var o eventsOptions
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Print the log and follow it",
		Long: `Print the events of the log: position, time, type, stream, revision and actor.
The server may run meanwhile. The command prints personal data only with --open,
which needs the master key.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := cli.Load(cmd)
			if err != nil {
				return err
			}
			if o.after < 0 {
				return cli.Usagef("after is %d; it must be 0 or more", o.after)
			}
			ctx, stop := cli.Interruptible(cmd.Context())
			defer stop()
			err = printEvents(ctx, c, cli.NewConsole(cmd, c), o)
			if o.follow && errors.Is(err, context.Canceled) {
				return nil // an interrupt is the normal end
			}
			return err
		},
	}
	cli.AddSettings(cmd.Flags(), "data", "master-key-file")
	cmd.Flags().Int64Var(&o.after, "after", 0, "print only events after this position")
	cmd.Flags().StringVar(&o.sub, "sub", "", "print only events of this account")
	cmd.Flags().BoolVar(&o.follow, "follow", false, "print new events as they are appended, until interrupted")
	cmd.Flags().BoolVar(&o.open, "open", false, "decrypt personal data and print it")
	cmd.AddCommand(catalogueCommand())
	return cmd
}

// eventLine is an event as --json prints it.
type eventLine struct {
	Position eventstore.Position `json:"position"`
	Time     time.Time           `json:"time"`
	Type     string              `json:"type"`
	Stream   string              `json:"stream"`
	Revision eventstore.Revision `json:"revision"`
	ID       uuid.UUID           `json:"id"`
	Actor    string              `json:"actor"`
	Erased   bool                `json:"erased,omitzero"`
	Clear    jsontext.Value      `json:"clear"`         // the part that is not encrypted
	Data     jsontext.Value      `json:"data,omitzero"` // all data, with --open
}

func printEvents(ctx context.Context, c cli.Config, out cli.Console, o eventsOptions) error {
	r, err := openReadOnly(ctx, c, out.Logger())
	if err != nil {
		return err
	}
	defer r.close()
	var codec domain.Codec
	if o.open {
		if codec.Keys, err = r.keys(ctx); err != nil {
			return err
		}
		defer codec.Keys.Close()
	}
	buffer := bufio.NewWriter(out.Out)
	out.Out = buffer
	for page, err := range r.selected(ctx, o) {
		if err != nil {
			return errors.Join(err, buffer.Flush())
		}
		for _, rec := range page {
			if err := printEvent(out, codec, rec, o.open); err != nil {
				return errors.Join(err, buffer.Flush())
			}
		}
		if err := buffer.Flush(); err != nil {
			return err
		}
	}
	return buffer.Flush()
}

// selected yields the events that o selects, in pages.
func (r *reader) selected(ctx context.Context, o eventsOptions) iter.Seq2[[]eventstore.Recorded, error] {
	return func(yield func([]eventstore.Recorded, error) bool) {
		after := eventstore.Position(o.after)
		stream := domain.AccountStream(o.sub)
		head, err := r.log.Head(ctx)
		if err != nil {
			yield(nil, err)
			return
		}
		if o.follow {
			head = 1<<63 - 1
		} else if o.sub != "" {
			for rec, err := range r.log.ReadStream(ctx, stream, 0) {
				if err != nil || rec.Position > after {
					if !yield([]eventstore.Recorded{rec}, err) {
						return
					}
				}
			}
			return
		}
		if after >= head {
			return
		}
		for page, err := range r.log.Subscribe(ctx, after) {
			var chosen []eventstore.Recorded
			for _, rec := range page {
				if rec.Position <= head && (o.sub == "" || rec.Stream == stream) {
					chosen = append(chosen, rec)
				}
			}
			if !yield(chosen, err) || err != nil || page[len(page)-1].Position >= head {
				return
			}
		}
	}
}

func printEvent(out cli.Console, codec domain.Codec, rec eventstore.Recorded, open bool) error {
	var data jsontext.Value
	erased := rec.Erased()
	if open {
		entry, err := codec.Decode(rec)
		if err != nil {
			return err
		}
		if data, err = entry.Data(); err != nil {
			return err
		}
		erased = entry.Erased
	}
	if out.JSON {
		return out.Line(eventLine{rec.Position, rec.Time, rec.Type, rec.Stream, rec.Revision, rec.ID, rec.Actor, erased, rec.Clear, data})
	}
	// The columns have fixed widths, because the events to come are not known.
	out.Printf("%9d  %s  %-32s %-45s %4d  %s", rec.Position, rec.Time.Format(cli.TimeFormat), rec.Type, rec.Stream, rec.Revision, rec.Actor)
	if erased {
		out.Printf("  erased")
	}
	if open {
		out.Printf("  %s", data)
	}
	out.Printf("\n")
	return nil
}
