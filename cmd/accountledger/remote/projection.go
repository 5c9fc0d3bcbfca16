package remote

import (
	"context"
	"fmt"
	"net/url"
	"time"

	"accountledger/cmd/accountledger/cli"
)

// pollInterval is how often Rebuild reads the state of the rebuild.
const pollInterval = 200 * time.Millisecond

// Rebuild makes the server rebuild a view, shows its progress, and returns the
// number of events applied once the new view is live.
func Rebuild(ctx context.Context, c cli.Config, out cli.Console, view string) (events int64, err error) {
	server, err := NewClient(c)
	if err != nil {
		return 0, err
	}
	defer server.Close()
	if err := server.Call(ctx, "POST", "/v1/projections/"+url.PathEscape(view)+"/rebuild", nil, nil); err != nil {
		return 0, err
	}
	p := out.Progress("events", -1)
	defer p.End()
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
		if err := server.Call(ctx, "GET", "/v1/projections", nil, &list); err != nil {
			return 0, err
		}
		for _, v := range list.Projections {
			if v.Name != view {
				continue
			}
			p.Set(v.Rebuild.Done, v.Rebuild.Total)
			switch v.Rebuild.State {
			case "done":
				return v.Rebuild.Done, nil
			case "failed":
				return 0, fmt.Errorf("rebuild of %s failed; the server's log has the reason", view)
			}
		}
		select {
		case <-time.After(pollInterval):
		case <-ctx.Done():
			return 0, fmt.Errorf("the server continues to rebuild %s: %w", view, ctx.Err())
		}
	}
}
