package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"accountledger/cmd/accountledger/cli"
	"accountledger/domain"
	"accountledger/projections"
)

// TestScheduledExports tests that exports are written at the start and when they
// are due, also after a restart, that only the newest are kept, and that files
// left incomplete by a crash are removed.
func TestScheduledExports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "exports")
		c := cli.Config{Data: filepath.Join(t.TempDir(), "data"), ExportDir: dir, ExportEvery: time.Hour, ExportFormat: "csv", ExportKeep: 2}
		l, err := openLedger(t.Context(), c, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { l.views.Run(ctx) })
		start := func() (stop func()) {
			ctx, cancel := context.WithCancel(ctx)
			done := make(chan error, 1)
			go func() { done <- l.exports.run(ctx) }()
			return func() {
				cancel()
				if err := <-done; err != nil {
					t.Errorf("run = %v", err)
				}
			}
		}
		accounts := 0
		add := func() {
			accounts++
			cmd := domain.CreateAccount{Origin: domain.OriginCreated, Identities: []domain.NewIdentity{{
				Provider: domain.ProviderSelf, Profile: domain.Profile{Email: fmt.Sprintf("p%d@example.com", accounts)}}}}
			r, err := l.ledger.Execute(ctx, domain.Request{Meta: domain.Metadata{Actor: domain.Actor{Kind: "test", ID: "t"}}}, domain.NewID().String(), cmd)
			if err != nil {
				t.Fatal(err)
			}
			if err := l.views.Await(ctx, projections.AccountsView, r.State.Position); err != nil {
				t.Fatal(err)
			}
		}
		// counts are the numbers of accounts in the files, oldest first.
		want := func(counts ...int) {
			t.Helper()
			synctest.Wait()
			files, err := l.exports.files()
			if err != nil || len(files) != len(counts) {
				t.Fatalf("files %v, %v; want %d", files, err, len(counts))
			}
			for i, file := range files {
				text, err := os.ReadFile(file)
				if err != nil || strings.Count(string(text), "\n") != 1+counts[i] {
					t.Errorf("%s does not have %d accounts: %v", filepath.Base(file), counts[i], err)
				}
				if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
					t.Errorf("%s: %v, %v", filepath.Base(file), info.Mode(), err)
				}
			}
			if left, err := filepath.Glob(filepath.Join(dir, cli.NewFilePrefix+"*")); err != nil || len(left) > 0 {
				t.Errorf("left over: %v, %v", left, err)
			}
		}
		add()
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, cli.NewFilePrefix+"1"), []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		stop := start()
		want(1)
		add()
		time.Sleep(59 * time.Minute)
		want(1)
		stop()
		stop = start() // a restart makes no export due
		want(1)
		time.Sleep(2 * time.Minute)
		want(1, 2)
		add()
		time.Sleep(time.Hour)
		want(2, 3)
		time.Sleep(3 * time.Hour) // without changes, the position and thus the file's name stay the same
		want(2, 3)
		stop()
		cancel()
		running.Wait()
		if err := l.close(); err != nil {
			t.Fatal(err)
		}
	})
}
