package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/eventstore/sqlite"
)

func verifyCommand() *cobra.Command {
	var vkey string
	var anchors []string
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Prove that the log was not altered",
		Long: `Check every event of the log against its hash, the tree, its predecessor and
the signed checkpoints, also beside a running server. Each fault is named with
its position, as in altered@123, and the exit code is 3. No key is needed but
the public one, log.vkey.

The log vouches for itself only as far as its signing key is safe. An auditor
names a key and checkpoints that were kept elsewhere, with --vkey and --anchor:
without an anchor, a log that lost its end together with its last checkpoints
looks complete.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := loadConfig(cmd)
			if err != nil {
				return err
			}
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			out := newConsole(cmd, c)
			trust := trustFiles{vkey, anchors}
			v, err := verify(ctx, c, out, trust)
			if err != nil {
				return err
			}
			return v.print(out)
		},
	}
	addSettings(cmd.Flags(), "data")
	cmd.Flags().StringVar(&vkey, "vkey", "", "file with the log's public key; default <data>/log.vkey")
	cmd.Flags().StringArrayVar(&anchors, "anchor", nil, "file with a checkpoint of the log that was kept elsewhere; may be repeated")
	return cmd
}

// trustFiles name what a verification believes besides the directory itself.
type trustFiles struct {
	vkey    string
	anchors []string
}

// verified is the outcome of a verification.
type verified struct {
	OK          bool         `json:"ok"`
	Origin      string       `json:"origin"`
	Events      int64        `json:"events"`
	Covered     int64        `json:"covered"` // events under the last checkpoint
	Checkpoints int          `json:"checkpoints"`
	Faults      []foundFault `json:"faults"`
	Unlisted    int64        `json:"unlisted,omitzero"` // further faults
	Warnings    []foundFault `json:"warnings"`
}

type foundFault struct {
	Name     string              `json:"name"` // as in altered@123
	Kind     sqlite.Kind         `json:"kind"`
	Position eventstore.Position `json:"position"`
	Detail   string              `json:"detail"`
}

// verify verifies the log in c.Data.
func verify(ctx context.Context, c config, out console, files trustFiles) (verified, error) {
	r, err := openReadOnly(ctx, c, out.logger())
	if err != nil {
		return verified{}, err
	}
	defer r.close()
	trust := sqlite.Trust{Erasures: domain.StoredTypes(domain.AccountErased{}), ErasedKey: domain.ErasedKey}
	var vkey string
	if files.vkey != "" {
		if vkey, err = readTrimmed(files.vkey); err != nil {
			return verified{}, err
		}
	}
	if trust.Verifier, err = r.verifier(vkey); err != nil {
		return verified{}, err
	}
	for _, path := range files.anchors {
		anchor, err := os.ReadFile(path)
		if err != nil {
			return verified{}, err
		}
		trust.Anchors = append(trust.Anchors, anchor)
	}
	head, err := r.log.Head(ctx)
	if err != nil {
		return verified{}, err
	}
	p := out.progress("events", int64(head))
	report, err := r.log.Verify(ctx, trust, p.set)
	p.end()
	if err != nil {
		return verified{}, err
	}
	return verified{
		OK: report.OK(), Origin: trust.Verifier.Name(), Events: report.Events, Covered: report.Covered, Checkpoints: report.Checkpoints,
		Faults: found(report.Faults), Unlisted: report.Unlisted, Warnings: found(report.Warnings),
	}, nil
}

func found(faults []sqlite.Fault) []foundFault {
	var all []foundFault
	for _, f := range faults {
		all = append(all, foundFault{f.String(), f.Kind, f.Position, f.Detail})
	}
	return all
}

// err is what a verification that found faults ends a command with.
func (v verified) err() error {
	if v.OK {
		return nil
	}
	return &exitError{exitFaults, fmt.Errorf("the log has faults: %d", int64(len(v.Faults))+v.Unlisted)}
}

func (v verified) print(out console) error {
	if out.json {
		if err := out.document(v); err != nil {
			return err
		}
		return v.err()
	}
	for _, f := range v.Faults {
		out.printf("%s: %s\n", f.Name, f.Detail)
	}
	if v.Unlisted > 0 {
		out.printf("and %d more\n", v.Unlisted)
	}
	for _, w := range v.Warnings {
		out.printf("warning: %s: %s\n", w.Name, w.Detail)
	}
	if v.OK {
		out.printf("verified: %d events of %s, %d of them under %d signed checkpoints\n", v.Events, v.Origin, v.Covered, v.Checkpoints)
	}
	return v.err()
}
