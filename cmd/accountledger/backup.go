package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"accountledger/cmd/accountledger/cli"
	"accountledger/eventstore"
	"accountledger/projections"
)

func backupCommand() *cobra.Command {
	var to string
	var withMaster bool
	cmd := &cobra.Command{
		Use:   "backup",
		Short: "Copy a ledger and verify the copy",
		Long: `Copy the ledger to an empty or new directory and verify the copy. The server may
run meanwhile. The copy is a complete data directory: to restore it, put it in
the place of the lost one, put the master key back, and start the server. Events
after the backup are lost, and webhooks deliver again what they delivered since.

The command does not copy the master key, so the copy alone reveals no
personal data; keep the key elsewhere. It copies the key that signs the log
(log.key), which the restored ledger needs. It does not copy the admin key:
'admin-key' creates a new one. The backup still contains the keys of accounts
that are erased later, so do not keep it longer than you may.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := cli.Load(cmd)
			if err != nil {
				return err
			}
			if to == "" {
				return cli.Usagef("no directory given: use --to DIRECTORY")
			}
			ctx, stop := cli.Interruptible(cmd.Context())
			defer stop()
			return backup(ctx, c, cli.NewConsole(cmd, c), to, withMaster)
		},
	}
	cli.AddSettings(cmd.Flags(), "data", "master-key-file")
	cmd.Flags().StringVar(&to, "to", "", "directory for the backup; it must be empty or not exist")
	cmd.Flags().BoolVar(&withMaster, "include-master-key", false, "also copy the master key; the copy alone then gives access to all personal data")
	return cmd
}

// backedUp is the summary of a backup.
type backedUp struct {
	Directory string              `json:"directory"`
	Position  eventstore.Position `json:"position"` // of the last event in it
	MasterKey bool                `json:"masterKey"`
	Verified  verified            `json:"verified"`
}

func backup(ctx context.Context, c cli.Config, out cli.Console, to string, withMaster bool) error {
	dest := directory(to)
	if err := dest.makeEmpty(); err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	if err := copyLedger(ctx, c, out, dest, withMaster); err != nil {
		return fmt.Errorf("backup: %w; the copy in %s is incomplete", err, to)
	}
	copied := c
	copied.Data = to
	v, err := verify(ctx, copied, out, trustFiles{})
	if err != nil {
		return fmt.Errorf("backup: verify the copy: %w", err)
	}
	if !v.OK {
		return v.print(out, true)
	}
	if out.JSON {
		return out.Document(backedUp{to, eventstore.Position(v.Events), withMaster, v})
	}
	out.Printf("backed up %d events to %s and verified them\n", v.Events, to)
	if !withMaster {
		out.Printf("the backup does not contain the master key, and cannot be opened without it\n")
	}
	return nil
}

// copyLedger copies the files of the ledger and then its keys. The log's keys are
// last, because a directory without them is not a ledger. Creating them also makes
// the names of the other copies durable.
func copyLedger(ctx context.Context, c cli.Config, out cli.Console, dest directory, withMaster bool) error {
	if err := copyFiles(ctx, c, out, dest); err != nil {
		return err
	}
	dir := directory(c.Data)
	if withMaster {
		master, err := dir.masterKey(c, false, out.Logger())
		if err != nil {
			return err
		}
		if err := cli.CreateFile(dest.path(masterKeyFile), master.Reveal()+"\n", 0o600); err != nil {
			return err
		}
	}
	for _, key := range []struct {
		name string
		mode fs.FileMode
	}{{logKeyFile, 0o600}, {logVKeyFile, 0o644}} {
		text, err := os.ReadFile(dir.path(key.name))
		if err != nil {
			return err
		}
		if err := cli.CreateFile(dest.path(key.name), string(text), key.mode); err != nil {
			return err
		}
	}
	return nil
}

// copyFiles copies a snapshot of each file: first the files that follow the log, so
// that none is ahead of it, then the log, and then the keys its events need.
func copyFiles(ctx context.Context, c cli.Config, out cli.Console, dest directory) error {
	r, err := openReadOnly(ctx, c, out.Logger())
	if err != nil {
		return err
	}
	defer r.close()
	keys, err := r.keys(ctx)
	if err != nil {
		return err
	}
	defer keys.Close()
	views, err := projections.OpenReader(ctx, r.dir.path(viewsFile))
	if err != nil {
		return err
	}
	defer views.Close()
	for _, file := range []struct {
		name string
		copy func(ctx context.Context, dest string) error
	}{
		{deliveryFile, func(ctx context.Context, dest string) error {
			return copyDatabase(ctx, r.dir.path(deliveryFile), dest)
		}},
		{viewsFile, views.Backup},
		{logFile, func(ctx context.Context, dest string) error {
			p := out.Progress("pages", -1)
			defer p.End()
			return r.log.Backup(ctx, dest, p.Set)
		}},
		{keysFile, keys.Backup},
	} {
		if !out.JSON {
			fmt.Fprintf(out.Err, "copying %s\n", file.name)
		}
		if err := file.copy(ctx, dest.path(file.name)); err != nil {
			return err
		}
		if err := ownOnly(dest.path(file.name)); err != nil {
			return err
		}
	}
	return nil
}

// ownOnly makes the contents of a copy durable, and the copy accessible only to
// its owner.
func ownOnly(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Chmod(0o600), f.Sync(), f.Close())
}

// makeEmpty creates the directory, or checks that it is empty, and makes it
// accessible only to its owner.
func (d directory) makeEmpty() error {
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(string(d))
	if err != nil {
		return err
	}
	if len(entries) > 0 {
		return fmt.Errorf("%s is not empty", d)
	}
	return os.Chmod(string(d), 0o700)
}
