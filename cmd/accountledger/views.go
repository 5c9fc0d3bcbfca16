package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"accountledger/eventstore"
	"accountledger/eventstore/sqlite"
	"accountledger/projections"
)

func viewsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "views",
		Short: "Show where the views stand, and rebuild them",
		Long: `Show where each view stands against the log, also beside a running server, and
which streams are parked: an event of theirs could not be applied, so their
later events wait.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := loadConfig(cmd)
			if err != nil {
				return err
			}
			return showViews(cmd.Context(), c, newConsole(cmd, c))
		},
	}
	addSettings(cmd.Flags(), "data")
	cmd.AddCommand(rebuildCommand())
	return cmd
}

func rebuildCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rebuild [view]",
		Short: "Make a view again from the log",
		Long: `Make a view again from the log, beside the live one, which goes on answering
until the two are switched. Where a server has the data directory, ask it with
--server URL; the key is read from <data>/admin.key or --key-file.`,
		Args:      cobra.MaximumNArgs(1),
		ValidArgs: []string{projections.AccountsView, projections.SearchView},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := loadConfig(cmd)
			if err != nil {
				return err
			}
			view := projections.AccountsView
			if len(args) > 0 {
				view = args[0]
			}
			if err := oneOf("view", view, projections.AccountsView, projections.SearchView); err != nil {
				return err
			}
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			out := newConsole(cmd, c)
			if c.Server != "" {
				return rebuildOnServer(ctx, c, out, view)
			}
			err = rebuildHere(ctx, c, out, view)
			if errors.Is(err, sqlite.ErrLocked) {
				return fmt.Errorf("%w; if it is the server, ask it with --server URL", err)
			}
			return err
		},
	}
	addSettings(cmd.Flags(), append([]string{"data", "master-key-file"}, serverSettings...)...)
	return cmd
}

// viewState is a view as --json shows it.
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

// viewStates is where the views stand against the log. The head is read last,
// so that no view seems to be before it.
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

func showViews(ctx context.Context, c config, out console) error {
	r, err := openReadOnly(ctx, c, out.logger())
	if err != nil {
		return err
	}
	defer r.close()
	states, err := r.viewStates(ctx)
	if err != nil {
		return err
	}
	if out.json {
		return out.document(states)
	}
	var rows, parked [][]any
	for _, v := range states {
		rows = append(rows, []any{v.Name, v.Position, v.Head, v.Lag, v.State, len(v.Parked)})
		for _, p := range v.Parked {
			parked = append(parked, []any{v.Name, p.Stream, p.Revision, p.Position, p.Attempts, p.Since.Format(timeFormat), p.Error})
		}
	}
	out.table([]any{"view", "position", "head", "lag", "state", "parked"}, rows)
	if len(parked) > 0 {
		out.printf("\n")
		out.table([]any{"view", "parked stream", "revision", "position", "attempts", "since", "error"}, parked)
	}
	return nil
}

// rebuilt is the outcome of a rebuild.
type rebuilt struct {
	View   string `json:"view"`
	Events int64  `json:"events"`
}

func (r rebuilt) print(out console) error {
	if out.json {
		return out.document(r)
	}
	out.printf("rebuilt %s from %d events\n", r.View, r.Events)
	return nil
}

func rebuildHere(ctx context.Context, c config, out console, view string) error {
	if there, err := directory(c.Data).has(logFile); err != nil || !there {
		return errors.Join(fmt.Errorf("data directory: there is no ledger in %s", c.Data), err)
	}
	l, err := openLedger(ctx, c, out.logger())
	if err != nil {
		return err
	}
	p := out.progress("events", -1)
	err = l.views.Rebuild(ctx, view, p.set)
	p.end()
	if err := errors.Join(err, l.close()); err != nil {
		return err
	}
	return rebuilt{view, p.done}.print(out)
}

// pollInterval is how often a server is asked how far it is.
const pollInterval = 200 * time.Millisecond

func rebuildOnServer(ctx context.Context, c config, out console, view string) error {
	server, err := newClient(c)
	if err != nil {
		return err
	}
	if err := server.call(ctx, "POST", "/v1/projections/"+url.PathEscape(view)+"/rebuild", nil, nil); err != nil {
		return err
	}
	p := out.progress("events", -1)
	defer p.end()
	for {
		var list struct {
			Projections []struct {
				Name    string `json:"name"`
				Rebuild struct {
					State string `json:"state"`
					Done  int64  `json:"done"`
					Total int64  `json:"total"`
				} `json:"rebuild"`
			} `json:"projections"`
		}
		if err := server.call(ctx, "GET", "/v1/projections", nil, &list); err != nil {
			return err
		}
		for _, v := range list.Projections {
			if v.Name != view {
				continue
			}
			p.set(v.Rebuild.Done, v.Rebuild.Total)
			switch v.Rebuild.State {
			case "done":
				return rebuilt{view, v.Rebuild.Done}.print(out)
			case "failed":
				return fmt.Errorf("rebuild %s: it failed; the server's log says why", view)
			}
		}
		select {
		case <-time.After(pollInterval):
		case <-ctx.Done():
			return fmt.Errorf("rebuild %s goes on at the server: %w", view, ctx.Err())
		}
	}
}
