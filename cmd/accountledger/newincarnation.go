package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"

	"accountledger/cmd/accountledger/cli"
	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/eventstore/seal"
	"accountledger/eventstore/tlog"
	"accountledger/projections"
	"accountledger/projections/webhooks"
)

func newIncarnationCommand() *cobra.Command {
	var o forkOptions
	var accept cli.Accept
	cmd := &cobra.Command{
		Use:   "new-incarnation --reason TEXT",
		Short: "Go on with an older log after a wanted roll-back",
		Long: `Let a ledger go on whose log is older than what it has signed, delivered or
shown before, because a backup was restored and the newer events are lost. The
server must not be running. The command verifies the log, shows what was lost,
and asks for confirmation.

Then it begins a new incarnation of the ledger: it renames the key that signs
the log, so that no one mistakes new checkpoints for those before; it appends
the event ledger.forked, which tells subscribers from where the history differs;
it rewinds webhooks to the fork; and it moves views.db aside, which the server
then rebuilds. Cursors of clients above the fork become invalid. If the command
is interrupted, run it again; until it is complete, the ledger does not open.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := cli.Load(cmd)
			if err != nil {
				return err
			}
			c.Accept = accept
			ctx, stop := cli.Interruptible(cmd.Context())
			defer stop()
			out := cli.NewConsole(cmd, c)
			if cli.IsTerminal(cmd.InOrStdin()) {
				o.terminal = cmd.InOrStdin()
			}
			done, err := newIncarnation(ctx, c, out, o)
			if err != nil {
				return err
			}
			return done.print(out)
		},
	}
	cli.AddSettings(cmd.Flags(), "data", "master-key-file", "last-signed")
	cmd.Flags().StringVar(&o.reason, "reason", "", "why the ledger is rolled back; permanent and public, so no personal data")
	cmd.Flags().BoolVar(&o.yes, "yes", false, "do not ask for confirmation")
	cmd.Flags().BoolVar(&o.nothingLost, "even-if-nothing-was-lost", false, "begin a new incarnation although no file is ahead of the log")
	accept.AddFlags(cmd.Flags())
	return cmd
}

// forkOptions says how to begin a new incarnation.
type forkOptions struct {
	reason      string
	yes         bool
	nothingLost bool
	terminal    io.Reader               // asked for confirmation; nil: there is none
	before      func(step string) error // called before each step, for tests; nil: nothing
}

// sighting is how far a file has seen the log.
type sighting struct {
	File     string              `json:"file"`
	Position eventstore.Position `json:"position"`
}

// sightings returns how far the files that follow the log have seen it. It omits
// files that are missing or cannot be read.
func (d directory) sightings(ctx context.Context) (all []sighting) {
	if views, err := projections.OpenReader(ctx, d.path(viewsFile)); err == nil {
		var seen eventstore.Position
		if states, err := views.Status(ctx); err == nil {
			for _, s := range states {
				seen = max(seen, s.Position)
			}
			all = append(all, sighting{viewsFile, seen})
		}
		views.Close()
	}
	if seen, err := deliveryPosition(ctx, d.path(deliveryFile)); err == nil {
		all = append(all, sighting{deliveryFile, seen})
	}
	return all
}

// forkPlan is what a new incarnation was decided to be. It is a file of the data
// directory from the decision until everything is done, so that an interrupted
// command continues with the same numbers.
type forkPlan struct {
	LedgerID       string              `json:"ledgerId"`
	Incarnation    int                 `json:"incarnation"`
	PreviousOrigin string              `json:"previousOrigin"`
	Size           eventstore.Position `json:"size"`       // of the log that remains
	Root           string              `json:"root"`       // of its tree, in base64
	SignedSize     eventstore.Position `json:"signedSize"` // that the ledger has signed
	Lost           int64               `json:"lost"`       // events, at least
	Reason         string              `json:"reason"`
	MAC            string              `json:"mac,omitzero"` // under the head key, so that a planted plan is recognized
}

// forked is the outcome.
type forked struct {
	forkPlan
	Origin    string     `json:"origin"` // of checkpoints from now on
	Seen      []sighting `json:"seen"`
	MovedTo   string     `json:"movedTo,omitzero"` // where views.db is now
	Erased    int        `json:"erased"`           // accounts that the log did not know to be erased
	Continued bool       `json:"continued"`        // an interrupted command was continued
}

// forking is a data directory in which a new incarnation begins. The caller has
// locked it.
type forking struct {
	forkOptions
	ctx    context.Context
	config cli.Config
	dir    directory
	out    cli.Console
	plan   forkPlan
	done   forked
}

func newIncarnation(ctx context.Context, c cli.Config, out cli.Console, o forkOptions) (forked, error) {
	if c.LastSigned != "" {
		if err := checkLastSigned(c); err != nil {
			return forked{}, err
		}
	}
	if err := requireStore(c); err != nil {
		return forked{}, err
	}
	f := &forking{forkOptions: o, ctx: ctx, config: c, dir: directory(c.Data), out: out}
	lock, err := f.dir.lock()
	if err != nil {
		return forked{}, err
	}
	defer lock.Close()
	if err := f.decide(); err != nil {
		return forked{}, fmt.Errorf("new-incarnation: %w", explain(c, err))
	}
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"plan", f.keepPlan},
		{"public key", f.addPublicKey},
		{"key", f.renameKey},
		{"delivery", f.rewindDelivery},
		{"views", f.moveViews},
		{"event", f.fork},
		{"done", f.dropPlan},
	} {
		if f.before != nil {
			if err := f.before(step.name); err != nil {
				return forked{}, err
			}
		}
		if err := step.do(); err != nil {
			return forked{}, fmt.Errorf("new-incarnation: %w; run the command again to continue", explain(c, err))
		}
	}
	f.done.forkPlan, f.done.Origin = f.plan, originOf(f.plan.LedgerID, f.plan.Incarnation)
	return f.done, nil
}

// decide reads the plan of an interrupted command, or makes one and asks for
// confirmation.
func (f *forking) decide() error {
	text, err := os.ReadFile(f.dir.path(forkPlanFile))
	if err == nil {
		if err := json.Unmarshal(text, &f.plan); err != nil {
			return fmt.Errorf("%s is damaged: %w", f.dir.path(forkPlanFile), err)
		}
		mac, err := f.planMAC()
		if err != nil {
			return err
		}
		if mac != f.plan.MAC {
			return refuse(refusePlan, nil, "file", f.dir.path(forkPlanFile))
		}
		f.done.Continued = true
		f.out.Note("continuing the interrupted roll-back to event %d, incarnation %d", f.plan.Size, f.plan.Incarnation)
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if strings.TrimSpace(f.reason) == "" {
		return cli.Usagef("no reason given: use --reason TEXT")
	}
	signer, _, known, err := f.dir.signer()
	if errors.Is(err, fs.ErrNotExist) {
		return refuse(refuseNoLogKey, err, "data", string(f.dir))
	}
	if err != nil {
		return err
	}
	if f.config.Accept.MissingWAL {
		if err := f.acceptMissingWAL(); err != nil {
			return err
		}
	}
	beside, err := f.verify(known)
	if err != nil {
		return err
	}
	id, n := splitOrigin(signer.Name())
	f.plan.LedgerID, f.plan.PreviousOrigin, f.plan.Reason = id, signer.Name(), f.reason
	f.done.Seen = f.dir.sightings(f.ctx)
	msg, err := lastNote(f.config)
	if err != nil {
		return err
	}
	if msg != nil {
		origin := originIn(msg)
		if ledgerID(origin) != id {
			return refuse(refuseSignedElse, nil, "file", f.config.LastSigned, "other", cli.Printable(ledgerID(origin)), "id", id)
		}
		kept, err := f.openSigned(msg, known)
		if err != nil {
			return refuse(refuseSignedDamaged, err, "file", f.config.LastSigned)
		}
		f.plan.SignedSize = eventstore.Position(kept.Size)
		if incarnation(origin) >= n {
			f.plan.PreviousOrigin = origin
			f.done.Seen = append(f.done.Seen, sighting{"last-signed", f.plan.SignedSize})
		}
		// A later incarnation than that of the key is ahead of the log even if its
		// log was shorter: its first event is missing.
		beside = beside || incarnation(origin) > n
		n = max(n, incarnation(origin))
	}
	f.plan.Incarnation = n + 1
	for _, s := range f.done.Seen {
		f.plan.Lost = max(f.plan.Lost, int64(s.Position-f.plan.Size))
	}
	if f.plan.Lost == 0 && !beside && !f.nothingLost {
		return cli.Exitf(cli.ExitFailed, "nothing was lost: no file has seen more than the log, which has %d events\n"+
			"Start the server. If you know that events are lost, for example because the\n"+
			"file of last-signed is lost too, use --even-if-nothing-was-lost", f.plan.Size)
	}
	return f.confirm()
}

// acceptMissingWAL opens a log that has lost its write-ahead log, and closes it,
// after which it can be read. The events that remain are those of a log that was
// signed before, so the checkpoint that this signs contradicts none.
func (f *forking) acceptMissingWAL() error {
	keys, log, err := f.open(nil, false)
	if err != nil {
		return err
	}
	return errors.Join(log.Close(), keys.Close())
}

// openSigned returns the checkpoint in a note of last-signed. The note may be of
// a later incarnation than log.key: all incarnations share one seed.
func (f *forking) openSigned(msg []byte, known verifiers) (tlog.Checkpoint, error) {
	skey, err := cli.ReadTrimmed(f.dir.path(logKeyFile))
	if err != nil {
		return tlog.Checkpoint{}, err
	}
	if skey, err = renameKey(skey, originIn(msg)); err != nil {
		return tlog.Checkpoint{}, err
	}
	vkey, err := verifierKey(skey)
	if err != nil {
		return tlog.Checkpoint{}, err
	}
	v, err := note.NewVerifier(vkey)
	if err != nil {
		return tlog.Checkpoint{}, err
	}
	return append(verifiers{v}, known...).open(msg)
}

// verify verifies the whole log and sets the size and root of the plan. It reports
// whether the log contradicts the last signed checkpoint.
func (f *forking) verify(known verifiers) (beside bool, err error) {
	var files trustFiles
	msg, err := lastNote(f.config)
	if err != nil {
		return false, err
	}
	if msg != nil {
		if _, err := known.open(msg); err == nil {
			files.anchors = []string{f.config.LastSigned}
		}
	}
	v, err := verify(f.ctx, f.config, f.out, files)
	if err != nil {
		return false, err
	}
	if !v.OK && len(files.anchors) > 0 {
		// The log may be older than the anchor, or have another history.
		beside = slices.ContainsFunc(v.Faults, func(x foundFault) bool { return x.Kind == "root" })
		if v, err = verify(f.ctx, f.config, f.out, trustFiles{}); err != nil {
			return false, err
		}
	}
	if !v.OK {
		return false, errors.Join(v.print(f.out, true), cli.Exitf(cli.ExitFaults, "the log has faults; restore a backup first"))
	}
	f.plan.Size = eventstore.Position(v.Events)
	f.plan.Root = base64.StdEncoding.EncodeToString(v.root[:])
	return beside, nil
}

// confirm shows what was found, and asks whether to go on.
func (f *forking) confirm() error {
	if !f.out.JSON {
		fmt.Fprintf(f.out.Err, "log: %d events of %s\n", f.plan.Size, originOf(f.plan.LedgerID, f.plan.Incarnation-1))
		for _, s := range f.done.Seen {
			fmt.Fprintf(f.out.Err, "%s: has seen %d events\n", s.File, s.Position)
		}
		fmt.Fprintf(f.out.Err, "%s\n", lostText(f.plan.Lost, f.plan.Size))
	}
	if f.yes {
		return nil
	}
	if f.terminal == nil {
		return cli.Usagef("this cannot be undone: confirm it with --yes")
	}
	fmt.Fprintf(f.out.Err, "Go on without them, as incarnation %d? This cannot be undone. [yes/no] ", f.plan.Incarnation)
	answer, err := bufio.NewReader(f.terminal).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if strings.TrimSpace(answer) != "yes" {
		return errors.New("not confirmed; nothing was changed")
	}
	return nil
}

// lostText says how many events after the fork are lost.
func lostText(lost int64, fork eventstore.Position) string {
	switch lost {
	case 0:
		return fmt.Sprintf("the number of lost events after %d is not known", fork)
	case 1:
		return fmt.Sprintf("1 event after %d is lost", fork)
	default:
		return fmt.Sprintf("%d events after %d are lost", lost, fork)
	}
}

// planMAC returns the MAC of the plan under the ledger's head key.
func (f *forking) planMAC() (string, error) {
	master, err := f.dir.masterKey(f.config, false, f.out.Logger())
	if err != nil {
		return "", err
	}
	keys, err := seal.OpenReader(f.ctx, seal.Config{Path: f.dir.path(keysFile), Master: master})
	if err != nil {
		return "", err
	}
	defer keys.Close()
	if !keys.CanVouch() {
		return "", nil // the key file of an earlier version
	}
	plan := f.plan
	plan.MAC = ""
	text, err := json.Marshal(plan)
	if err != nil {
		return "", err
	}
	mac := keys.Vouch(append([]byte("AL1/plan\x00"), text...))
	return hex.EncodeToString(mac[:]), nil
}

// keepPlan makes the plan durable. From here on the ledger does not open until
// the roll-back is complete.
func (f *forking) keepPlan() error {
	if f.done.Continued {
		return nil
	}
	mac, err := f.planMAC()
	if err != nil {
		return err
	}
	f.plan.MAC = mac
	text, err := json.Marshal(f.plan)
	if err != nil {
		return err
	}
	return cli.CreateFile(f.dir.path(forkPlanFile), string(text)+"\n", 0o600)
}

// keyPair returns the key pair of the new incarnation.
func (f *forking) keyPair() (skey, vkey string, err error) {
	if skey, err = cli.ReadTrimmed(f.dir.path(logKeyFile)); err != nil {
		return "", "", err
	}
	if skey, err = renameKey(skey, originOf(f.plan.LedgerID, f.plan.Incarnation)); err != nil {
		return "", "", err
	}
	vkey, err = verifierKey(skey)
	return skey, vkey, err
}

// addPublicKey adds the new public key to log.vkey, above the others.
func (f *forking) addPublicKey() error {
	_, vkey, err := f.keyPair()
	if err != nil {
		return err
	}
	stored, err := cli.ReadTrimmed(f.dir.path(logVKeyFile))
	if errors.Is(err, fs.ErrNotExist) {
		_, stored, _, err = f.dir.signer()
	}
	if newest, _, _ := strings.Cut(stored, "\n"); err != nil || newest == vkey {
		return err
	}
	return cli.WriteFile(f.dir.path(logVKeyFile), 0o644, os.Rename, func(file *os.File) error {
		_, err := fmt.Fprintf(file, "%s\n%s\n", vkey, stored)
		return err
	})
}

// renameKey gives the signing key the name of the new incarnation.
func (f *forking) renameKey() error {
	skey, _, err := f.keyPair()
	if err != nil {
		return err
	}
	if stored, err := cli.ReadTrimmed(f.dir.path(logKeyFile)); err != nil || stored == skey {
		return err
	}
	return cli.WriteFile(f.dir.path(logKeyFile), 0o600, os.Rename, func(file *os.File) error {
		_, err := fmt.Fprintln(file, skey)
		return err
	})
}

// rewindDelivery lets webhooks continue at the fork.
func (f *forking) rewindDelivery() error {
	there, err := f.dir.has(deliveryFile)
	if err != nil || !there {
		return err
	}
	log, err := openStoreReader(f.ctx, f.config)
	if err != nil {
		return err
	}
	defer log.Close()
	var last eventstore.Recorded
	if f.plan.Size > 0 {
		if last, err = recordAt(f.ctx, log, f.plan.Size); err != nil {
			return err
		}
	}
	return webhooks.Rewind(f.ctx, f.dir.path(deliveryFile), f.plan.Size, last.ID)
}

// moveViews moves views.db and the files that SQLite keeps beside it. The name of
// the main file is the last to change, so that an interrupted step is repeated.
func (f *forking) moveViews() error {
	aside := fmt.Sprintf("%s.before-%d", viewsFile, f.plan.Incarnation)
	for _, suffix := range []string{"-shm", "-wal", ""} {
		err := os.Rename(f.dir.path(viewsFile)+suffix, f.dir.path(aside)+suffix)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err == nil && suffix == "" {
			f.done.MovedTo = f.dir.path(aside)
		}
	}
	return cli.SyncDir(string(f.dir))
}

// fork appends ledger.forked, unless the log has it, and signs the log.
func (f *forking) fork() (err error) {
	reader, err := openReadOnly(f.ctx, f.config, f.out.Logger())
	if err != nil {
		return err
	}
	erased, err := lostErasures(f.ctx, reader)
	if err = errors.Join(err, reader.close()); err != nil {
		return err
	}
	keys, log, err := f.openForked()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close(), keys.Close()) }()
	ledger := domain.NewLedger(domain.LedgerConfig{Log: log, Codec: domain.Codec{Keys: keys}})
	request := domain.Request{Meta: domain.Metadata{Actor: domain.Actor{Kind: "system", ID: "new-incarnation"}}}
	lineage, err := ledger.Lineage(f.ctx)
	if err != nil {
		return err
	}
	if lineage.Last().Number != f.plan.Incarnation {
		if _, err := ledger.Fork(f.ctx, request, domain.ForkLedger{
			LedgerID: f.plan.LedgerID, Incarnation: f.plan.Incarnation, PreviousOrigin: f.plan.PreviousOrigin,
			Size: f.plan.Size, Root: f.plan.Root, SignedSize: f.plan.SignedSize, Reason: f.plan.Reason,
		}); err != nil {
			return err
		}
	}
	if len(erased) == 0 {
		return nil
	}
	for _, rec := range erased {
		sub, ok := strings.CutPrefix(rec.Stream, domain.AccountStream(""))
		if !ok {
			continue // a key of the ledger, like that of a webhook
		}
		_, err := ledger.Execute(f.ctx, request, sub, domain.EraseAccount{})
		if err != nil && domain.CodeOf(err) != domain.CodeAccountErased { // with another account
			return err
		}
		f.done.Erased++
	}
	// The identifiers of these accounts are gone, so their claims cannot be released.
	return log.Reclaim(f.ctx, domain.ClaimsVersion, ledger.Claims(f.ctx))
}

// dropPlan ends the roll-back.
func (f *forking) dropPlan() error {
	if err := os.Remove(f.dir.path(forkPlanFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return cli.SyncDir(string(f.dir))
}

// lostErasures returns the keys that keys.db has destroyed although the log has no
// erasure that says so: those erasures were lost with the end of the log.
func lostErasures(ctx context.Context, r *reader) ([]eventstore.Recorded, error) {
	gone, err := r.dir.destroyed(ctx)
	if err != nil {
		return nil, err
	}
	found := map[eventstore.KeyID]eventstore.Recorded{}
	for page, err := range r.selected(ctx, eventsOptions{}) {
		if err != nil {
			return nil, err
		}
		for _, rec := range page {
			if key, ok := domain.ErasedKey(rec.Type, rec.Clear); ok {
				delete(found, key)
			}
			if _, known := found[rec.KeyID]; !known && rec.KeyID != (eventstore.KeyID{}) && gone[rec.KeyID.Slot()] {
				found[rec.KeyID] = eventstore.Recorded{Event: eventstore.Event{KeyID: rec.KeyID}, Stream: rec.Stream, Position: rec.Position}
			}
		}
	}
	all := make([]eventstore.Recorded, 0, len(found))
	for _, rec := range found {
		all = append(all, rec)
	}
	slices.SortFunc(all, func(a, b eventstore.Recorded) int { return cmp.Compare(a.Position, b.Position) })
	return all, nil
}

// openForked opens the keys and the log under the name of the new incarnation.
// Closing the log signs it, and so writes the file of the setting last-signed.
func (f *forking) openForked() (*seal.Keys, ledgerLog, error) {
	_, _, known, err := f.dir.signer()
	if err != nil {
		return nil, nil, err
	}
	last, err := openLastSigned(f.config, known)
	if err != nil {
		return nil, nil, err
	}
	return f.open(last, true)
}

// open opens the keys and the log. newOrigin gives the log the name of the key.
func (f *forking) open(last *lastSigned, newOrigin bool) (*seal.Keys, ledgerLog, error) {
	logger := f.out.Logger()
	id := identity{complete: true}
	var err error
	if id.signer, id.vkey, id.known, err = f.dir.signer(); err != nil {
		return nil, nil, err
	}
	if id.master, err = f.dir.masterKey(f.config, false, logger); err != nil {
		return nil, nil, err
	}
	keys, err := seal.Open(f.ctx, seal.Config{Path: f.dir.path(keysFile), Master: id.master, Ledger: ledgerID(id.signer.Name()), Existing: true})
	if err != nil {
		return nil, nil, err
	}
	log, err := openStore(f.ctx, f.config, id, keys, last, true, newOrigin, logger, storeHooks{})
	if err != nil {
		return nil, nil, errors.Join(err, keys.Close())
	}
	return keys, log, nil
}

func (d forked) print(out cli.Console) error {
	if out.JSON {
		return out.Document(d)
	}
	out.Printf("the ledger goes on after event %d as %s\n", d.Size, d.Origin)
	out.Printf("%s\n", lostText(d.Lost, d.Size))
	if d.MovedTo != "" {
		out.Printf("the previous views are %s; the server rebuilds them\n", d.MovedTo)
	}
	if d.Erased > 0 {
		out.Printf("accounts that were erased after event %d stay erased: %d\n", d.Size, d.Erased)
	}
	out.Printf("give log.vkey, which has a new line, to auditors\n")
	return nil
}
