package main

import (
	"context"
	"os"

	"github.com/spf13/cobra"

	"accountledger/cmd/accountledger/cli"
	"accountledger/eventstore"
)

func verifyCommand() *cobra.Command {
	var vkey string
	var anchors []string
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Verify that the log was not altered",
		Long: `Verify every event of the log against its hash, the Merkle tree, its predecessor
and the signed checkpoints. The server may run meanwhile. The command prints
each fault with its position, like altered@123; the exit code is then 3. It
needs only the public key, log.vkey.

An attacker with the log's signing key could sign an altered log. An auditor
thus uses a public key and checkpoints that were kept elsewhere, with --vkey and
--anchor. Without an anchor, a log that has lost its last events together with
their checkpoints looks complete.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := cli.Load(cmd)
			if err != nil {
				return err
			}
			ctx, stop := cli.Interruptible(cmd.Context())
			defer stop()
			out := cli.NewConsole(cmd, c)
			v, err := verify(ctx, c, out, trustFiles{vkey, anchors})
			if err != nil {
				return err
			}
			return v.print(out)
		},
	}
	cli.AddSettings(cmd.Flags(), "data")
	cmd.Flags().StringVar(&vkey, "vkey", "", "file with the log's public key; default <data>/log.vkey")
	cmd.Flags().StringArrayVar(&anchors, "anchor", nil, "file with a checkpoint that was kept elsewhere; may be repeated")
	return cmd
}

// trustFiles are files that a verification trusts besides the data directory.
type trustFiles struct {
	vkey    string
	anchors []string
}

// verified is the outcome of a verification.
type verified struct {
	OK          bool         `json:"ok"`
	Origin      string       `json:"origin"`
	Events      int64        `json:"events"`
	Covered     int64        `json:"covered"` // by the last checkpoint
	Checkpoints int          `json:"checkpoints"`
	Faults      []foundFault `json:"faults"`
	Unlisted    int64        `json:"unlisted,omitzero"` // number of further faults
	Warnings    []foundFault `json:"warnings"`
}

type foundFault struct {
	Name     string              `json:"name"` // like altered@123
	Kind     string              `json:"kind"`
	Position eventstore.Position `json:"position"`
	Detail   string              `json:"detail"`
}

// verify verifies the log in c.Data.
func verify(ctx context.Context, c cli.Config, out cli.Console, files trustFiles) (verified, error) {
	r, err := openReadOnly(ctx, c, out.Logger())
	if err != nil {
		return verified{}, err
	}
	defer r.close()
	var t trust
	var vkey string
	if files.vkey != "" {
		if vkey, err = cli.ReadTrimmed(files.vkey); err != nil {
			return verified{}, err
		}
	}
	if t.verifier, err = r.verifier(vkey); err != nil {
		return verified{}, err
	}
	for _, path := range files.anchors {
		anchor, err := os.ReadFile(path)
		if err != nil {
			return verified{}, err
		}
		t.anchors = append(t.anchors, anchor)
	}
	head, err := r.log.Head(ctx)
	if err != nil {
		return verified{}, err
	}
	p := out.Progress("events", int64(head))
	defer p.End()
	return r.log.verify(ctx, t, p.Set)
}

// err returns an error if there are faults.
func (v verified) err() error {
	if v.OK {
		return nil
	}
	return cli.Exitf(cli.ExitFaults, "the log has faults: %d", int64(len(v.Faults))+v.Unlisted)
}

func (v verified) print(out cli.Console) error {
	if out.JSON {
		if err := out.Document(v); err != nil {
			return err
		}
		return v.err()
	}
	for _, f := range v.Faults {
		out.Printf("%s: %s\n", f.Name, f.Detail)
	}
	if v.Unlisted > 0 {
		out.Printf("and %d more\n", v.Unlisted)
	}
	for _, w := range v.Warnings {
		out.Printf("warning: %s: %s\n", w.Name, w.Detail)
	}
	if v.OK {
		out.Printf("verified: %d events of %s, %d of them covered by %d signed checkpoints\n", v.Events, v.Origin, v.Covered, v.Checkpoints)
	}
	return v.err()
}
