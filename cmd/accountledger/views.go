package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"accountledger/cmd/accountledger/cli"
	"accountledger/cmd/accountledger/remote"
	"accountledger/eventstore"
	"accountledger/projections"
)

func viewsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "views",
		Short: "Show the state of the views, and rebuild them",
		Long: `Show how far each view is behind the log, and which streams are parked: the view
could not apply one of their events, so the later ones wait. The server may run
meanwhile.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := cli.Load(cmd)
			if err != nil {
				return err
			}
			return showViews(cmd.Context(), c, cli.NewConsole(cmd, c))
		},
	}
	cli.AddSettings(cmd.Flags(), "data")
	cmd.AddCommand(rebuildCommand())
	return cmd
}

func rebuildCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rebuild [view]",
		Short: "Rebuild a view from the log",
		Long: `Rebuild a view from the log. The live view answers queries until the new one
replaces it. If a server uses the data directory, make the server rebuild the
view with --server URL; the API key is read from <data>/admin.key or --key-file.`,
		Args:      cobra.MaximumNArgs(1),
		ValidArgs: []string{projections.AccountsView, projections.SearchView},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := cli.Load(cmd)
			if err != nil {
				return err
			}
			view := projections.AccountsView
			if len(args) > 0 {
				view = args[0]
			}
			if err := cli.OneOf("view", view, projections.AccountsView, projections.SearchView); err != nil {
				return err
			}
			ctx, stop := cli.Interruptible(cmd.Context())
			defer stop()
			out := cli.NewConsole(cmd, c)
			if c.Server != "" {
				events, err := remote.Rebuild(ctx, c, out, view)
				if err != nil {
					return err
				}
				return rebuilt{view, events}.print(out)
			}
			err = rebuildHere(ctx, c, out, view)
			if errors.Is(err, errLocked) {
				return fmt.Errorf("%w; if that is the server, use --server URL", err)
			}
			return err
		},
	}
	cli.AddSettings(cmd.Flags(), append([]string{"data", "master-key-file", "last-signed"}, remote.Settings...)...)
	return cmd
}

// viewState is the state of a view.
type viewState struct {
	Name     string              `json:"name"`
	Position eventstore.Position `json:"position"`
	Head     eventstore.Position `json:"head"`
	Lag      int64               `json:"lag"`
	State    string              `json:"state"`
	Rebuilt  eventstore.Position `json:"rebuilt,omitzero"`
	Parked   []parkedStream      `json:"parked"`
}

type parkedStream struct {
	Stream   string              `json:"stream"`
	Revision eventstore.Revision `json:"revision"`
	Position eventstore.Position `json:"position"`
	Error    string              `json:"error"`
	Since    time.Time           `json:"since"`
	Attempts int64               `json:"attempts"`
}

// viewStates returns the states of the views. It reads the log's head last, so
// that no view seems to be ahead of it.
func (r *reader) viewStates(ctx context.Context) ([]viewState, error) {
	views, err := projections.OpenReader(ctx, r.dir.path(viewsFile))
	if err != nil {
		return nil, err
	}
	defer views.Close()
	statuses, err := views.Status(ctx)
	if err != nil {
		return nil, err
	}
	head, err := r.log.Head(ctx)
	if err != nil {
		return nil, err
	}
	var states []viewState
	for _, s := range statuses {
		v := viewState{s.Name, s.Position, head, int64(head - s.Position), s.State, s.Rebuilt, nil}
		for _, p := range s.Parked {
			v.Parked = append(v.Parked, parkedStream{p.Stream, p.Revision, p.Position, p.Error, p.Since, p.Attempts})
		}
		states = append(states, v)
	}
	return states, nil
}

func showViews(ctx context.Context, c cli.Config, out cli.Console) error {
	r, err := openReadOnly(ctx, c, out.Logger())
	if err != nil {
		return err
	}
	defer r.close()
	states, err := r.viewStates(ctx)
	if err != nil {
		return err
	}
	if out.JSON {
		return out.Document(states)
	}
	var rows, parked [][]any
	for _, v := range states {
		rows = append(rows, []any{v.Name, v.Position, v.Head, v.Lag, v.State, len(v.Parked)})
		for _, p := range v.Parked {
			parked = append(parked, []any{v.Name, p.Stream, p.Revision, p.Position, p.Attempts, p.Since.Format(cli.TimeFormat), p.Error})
		}
	}
	out.Table([]any{"view", "position", "head", "lag", "state", "parked"}, rows)
	if len(parked) > 0 {
		out.Printf("\n")
		out.Table([]any{"view", "parked stream", "revision", "position", "attempts", "since", "error"}, parked)
	}
	return nil
}

// rebuilt is the outcome of a rebuild.
type rebuilt struct {
	View   string `json:"view"`
	Events int64  `json:"events"`
}

func (r rebuilt) print(out cli.Console) error {
	if out.JSON {
		return out.Document(r)
	}
	out.Printf("rebuilt %s from %d events\n", r.View, r.Events)
	return nil
}

func rebuildHere(ctx context.Context, c cli.Config, out cli.Console, view string) error {
	if err := requireStore(c); err != nil {
		return err
	}
	l, err := openLedger(ctx, c, out.Logger())
	if err != nil {
		return err
	}
	p := out.Progress("events", -1)
	err = l.views.Rebuild(ctx, view, p.Set)
	p.End()
	if err := errors.Join(err, l.close()); err != nil {
		return err
	}
	return rebuilt{view, p.Done()}.print(out)
}
