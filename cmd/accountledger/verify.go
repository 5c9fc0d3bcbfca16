package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"accountledger/cmd/accountledger/cli"
	"accountledger/eventstore"
)

func verifyCommand() *cobra.Command {
	var files trustFiles
	var allowUncovered bool
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Verify that the log was not altered",
		Long: `Verify every event of the log against its hash, the Merkle tree, its predecessor
and the signed checkpoints. The command prints each fault with its position,
like altered@123; the exit code is then 3. It needs only the public key,
log.vkey. With the master key it also checks the sealed head, which covers
events that are not under a checkpoint yet.

The exit code is 9 if there is no fault, but no signed checkpoint covers the
last events: somebody may have added them, or removed the checkpoints. A server
that stops signs all events. If a server uses the log, the command compares it
with the newest checkpoint, and counts later events as newer.

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
			v, err := verify(ctx, c, out, files)
			if err != nil {
				return err
			}
			return v.print(out, allowUncovered)
		},
	}
	cli.AddSettings(cmd.Flags(), "data", "master-key-file")
	cmd.Flags().StringVar(&files.vkey, "vkey", "", "file with the log's public keys; default <data>/log.vkey")
	cmd.Flags().StringArrayVar(&files.anchors, "anchor", nil, "file with a checkpoint that was kept elsewhere; may be repeated")
	cmd.Flags().BoolVar(&allowUncovered, "allow-uncovered", false, "end with exit code 0 although no checkpoint covers the last events")
	return cmd
}

// trustFiles are files that a verification trusts besides the data directory.
type trustFiles struct {
	vkey    string
	anchors []string
}

// The values of verified.SealedHead.
const (
	headChecked     = "checked"
	headNotChecked  = "not checked"
	headNoMasterKey = "not checked (no master key)"
	headNoKeys      = "not checked (no keys.db)"
	headOtherKeys   = "not checked (keys.db belongs to another ledger)"
)

// verified is the outcome of a verification.
type verified struct {
	OK          bool         `json:"ok"`
	Origin      string       `json:"origin"`
	Events      int64        `json:"events"`
	Covered     int64        `json:"covered"` // by the last checkpoint
	Newer       int64        `json:"newer"`   // than the last checkpoint, because a server appends
	Checkpoints int          `json:"checkpoints"`
	SealedHead  string       `json:"sealedHead"`
	Faults      []foundFault `json:"faults"`
	Unlisted    int64        `json:"unlisted,omitzero"` // number of further faults
	Warnings    []foundFault `json:"warnings"`

	root [32]byte // of the tree over the events
}

type foundFault struct {
	Name     string              `json:"name"` // like altered@123
	Kind     string              `json:"kind"`
	Position eventstore.Position `json:"position"`
	Detail   string              `json:"detail"`
}

// kindUncovered is the kind of the warning that no checkpoint covers the last
// events.
const kindUncovered = "uncovered"

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
	if t.verifiers, err = r.verifiers(vkey); err != nil {
		return verified{}, err
	}
	for _, path := range files.anchors {
		anchor, err := os.ReadFile(path)
		if err != nil {
			return verified{}, err
		}
		t.anchors = append(t.anchors, anchor)
	}
	// A server that stops meanwhile signs a checkpoint, but may do so after it is
	// read. One that starts meanwhile covers the events of the last one.
	running, err := r.dir.inUse()
	if err != nil {
		return verified{}, err
	}
	head, err := r.log.Head(ctx)
	if err != nil {
		return verified{}, err
	}
	p := out.Progress("events", int64(head))
	defer p.End()
	v, err := r.log.verify(ctx, t, p.Set)
	if err != nil {
		return verified{}, err
	}
	if running && v.Covered > 0 {
		v.Newer = v.Events - v.Covered
		v.Warnings = slices.DeleteFunc(v.Warnings, func(w foundFault) bool { return w.Kind == kindUncovered })
	}
	return v, r.sealedHead(ctx, &v)
}

// sealedHead checks the sealed head of the log, if the master key is available,
// and adds what it finds to v.
func (r *reader) sealedHead(ctx context.Context, v *verified) error {
	keys, err := r.keys(ctx)
	switch {
	case errors.Is(err, errNoMasterKey) && r.config.MasterKeyFile == "":
		v.SealedHead = headNoMasterKey
		return nil
	case errors.Is(err, fs.ErrNotExist):
		v.SealedHead = headNoKeys
		return nil
	case err != nil:
		return err
	}
	defer keys.Close()
	owner, err := keys.Ledger(ctx)
	if err != nil {
		return err
	}
	if owner != "" && owner != ledgerID(v.Origin) {
		v.SealedHead = headOtherKeys
		return nil
	}
	switch checked, err := r.log.checkHead(ctx, keys, false); {
	case errors.Is(err, eventstore.ErrTampered):
		v.OK, v.SealedHead = false, headChecked
		v.Faults = append(v.Faults, foundFault{"head", "head", eventstore.Position(v.Events), "the log is not what its sealed head says: events or claims were changed, added or removed"})
	case err != nil:
		return err
	case checked:
		v.SealedHead = headChecked
	}
	return nil
}

// uncovered returns the number of events that no checkpoint covers, besides those
// that a running server has just appended.
func (v verified) uncovered() int64 { return v.Events - v.Covered - v.Newer }

// err returns an error if there are faults, or events without a checkpoint unless
// they are allowed.
func (v verified) err(allowUncovered bool) error {
	switch n := v.uncovered(); {
	case !v.OK:
		return cli.Exitf(cli.ExitFaults, "the log has faults: %d", int64(len(v.Faults))+v.Unlisted)
	case n > 0 && !allowUncovered:
		return cli.Exitf(cli.ExitUncovered, "no signed checkpoint covers the last events: %d\n"+
			"Somebody may have added them, or removed checkpoints. If the server was\n"+
			"killed, start and stop it: it signs them if its sealed head covers them.\n"+
			"--allow-uncovered accepts them.", n)
	}
	return nil
}

func (v verified) print(out cli.Console, allowUncovered bool) error {
	if out.JSON {
		return errors.Join(out.Document(v), v.err(allowUncovered))
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
		if v.Newer > 0 {
			out.Printf("newer: %d events, which the running server has not signed yet\n", v.Newer)
		}
	}
	out.Printf("sealed head: %s\n", v.SealedHead)
	return v.err(allowUncovered)
}
