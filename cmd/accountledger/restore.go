package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"accountledger/cmd/accountledger/cli"
	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/eventstore/seal"
)

func restoreCommand() *cobra.Command {
	var from string
	var loseNewer bool
	cmd := &cobra.Command{
		Use:   "restore --from BACKUP",
		Short: "Replace a data directory by a verified backup",
		Long: `Verify a backup and put a copy of it in the place of the data directory, which
is renamed to <data>.replaced-<time> and never deleted. The server must not be
running. Before it changes anything, the command verifies every event, opens the
keys with the master key, and looks for the key that signs the log. It takes the
keys that the backup lacks from the data directory.

It compares the backup with the data directory and with the last signed
checkpoint, and refuses if events would be lost, unless --lose-newer-events says
so. Accounts that were erased after the backup stay erased: the command destroys
their keys in the copy. If events are lost, run 'new-incarnation' afterwards.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := cli.Load(cmd)
			if err != nil {
				return err
			}
			if from == "" {
				return cli.Usagef("no backup given: use --from DIRECTORY")
			}
			ctx, stop := cli.Interruptible(cmd.Context())
			defer stop()
			out := cli.NewConsole(cmd, c)
			done, err := restore(ctx, c, out, from, loseNewer)
			if err != nil {
				return err
			}
			return done.print(out)
		},
	}
	cli.AddSettings(cmd.Flags(), "data", "master-key-file", "last-signed")
	cmd.Flags().StringVar(&from, "from", "", "directory of the backup; it is only read")
	cmd.Flags().BoolVar(&loseNewer, "lose-newer-events", false, "restore although events that the backup lacks are lost")
	return cmd
}

// restored is the outcome of a restore.
type restored struct {
	Directory string              `json:"directory"`
	From      string              `json:"from"`
	Position  eventstore.Position `json:"position"`          // of the last event in the backup
	Replaced  string              `json:"replaced,omitzero"` // where the previous directory is now
	Lost      lostEvents          `json:"lost"`
	Erasures  int                 `json:"erasures"` // keys destroyed because the replaced directory had destroyed them
	Verified  verified            `json:"verified"`
	Next      []string            `json:"next"` // what to do next
}

// lostEvents are the events that a backup lacks.
type lostEvents struct {
	Events int64               `json:"events"` // at least
	After  eventstore.Position `json:"after"`  // of the last event that remains
	Since  time.Time           `json:"since,omitzero"`
	Seen   string              `json:"seen,omitzero"` // the file that has seen them
	Exact  bool                `json:"exact"`         // false: there may be more
}

// String says which events are lost.
func (l lostEvents) String() string {
	if l.Events == 0 {
		return fmt.Sprintf("an unknown number of events after %d", l.After)
	}
	text := fmt.Sprintf("%d events after %d", l.Events, l.After)
	if l.Events == 1 {
		text = fmt.Sprintf("1 event after %d", l.After)
	}
	if !l.Exact {
		text = "at least " + text
	}
	if !l.Since.IsZero() {
		text += ", recorded since " + l.Since.UTC().Format(time.RFC3339)
	}
	return text
}

// any reports whether events are lost, or may be.
func (l lostEvents) any() bool { return l.Events > 0 || !l.Exact }

// The names of the directories beside the data directory.
const (
	restoringSuffix = ".restoring" // a copy that is not complete
	replacedSuffix  = ".replaced-" // and the time
)

// restore puts a copy of the backup into the place of the data directory of c.
func restore(ctx context.Context, c cli.Config, out cli.Console, from string, loseNewer bool) (restored, error) {
	c.Data = filepath.Clean(c.Data)
	present, backupDir := directory(c.Data), directory(filepath.Clean(from))
	if same(c.Data, from) {
		return restored{}, cli.Usagef("the backup and the data directory are the same, %s", c.Data)
	}
	if c.LastSigned != "" {
		if err := checkLastSigned(c); err != nil {
			return restored{}, err
		}
	}
	there, err := exists(c.Data)
	if err != nil {
		return restored{}, fmt.Errorf("restore: %w", err)
	}
	if there {
		lock, err := present.lock()
		if err != nil {
			return restored{}, err
		}
		defer lock.Close()
	} else if present, err = present.lastReplaced(); err != nil {
		return restored{}, fmt.Errorf("restore: %w", err)
	}

	backup := c
	backup.Data = string(backupDir)
	if err := requireStore(backup); err != nil {
		return restored{}, fmt.Errorf("restore: the backup: %w", err)
	}
	keys, err := findKeys(c, backupDir, present)
	if err != nil {
		return restored{}, err
	}
	if os.Getenv(masterKeyEnv) == "" {
		backup.MasterKeyFile = keys.master
	}
	r, err := openReadOnly(ctx, backup, out.Logger())
	if err != nil {
		return restored{}, fmt.Errorf("restore: the backup: %w", err)
	}
	defer r.close()
	if err := r.openEnds(ctx); err != nil {
		return restored{}, fmt.Errorf("restore: the backup: %w", err)
	}
	v, err := verify(ctx, backup, out, trustFiles{})
	if err != nil {
		return restored{}, fmt.Errorf("restore: verify the backup: %w", err)
	}
	if !v.OK {
		return restored{}, errors.Join(v.print(out, true), errors.New("restore: the backup has faults; nothing was replaced"))
	}
	done := restored{Directory: c.Data, From: from, Position: eventstore.Position(v.Events), Verified: v}
	if done.Lost, err = lostBy(ctx, c, r, present, keys.known); err != nil {
		return restored{}, err
	}
	if done.Lost.any() && !loseNewer {
		return restored{}, &refusal{
			title: "nothing was restored",
			what:  fmt.Sprintf("The backup ends at event %d; %s would be lost.", v.Events, done.Lost),
			cause: "The ledger was used after the backup was made.",
			do:    "Use a newer backup, or repair " + cmp.Or(string(present), c.Data) + " if that is possible.",
			override: "--lose-newer-events restores the backup. The events stay in the directory that is replaced; " +
				"the ledger goes on without them, as a new incarnation.",
		}
	}

	fresh := directory(c.Data + restoringSuffix)
	if err := os.RemoveAll(string(fresh)); err != nil { // of an interrupted restore
		return restored{}, fmt.Errorf("restore: %w", err)
	}
	if err := fresh.makeEmpty(); err != nil {
		return restored{}, fmt.Errorf("restore: %w", err)
	}
	if err := copyFiles(ctx, backup, out, fresh); err != nil {
		return restored{}, fmt.Errorf("restore: %w", err)
	}
	if done.Erasures, err = r.keepErased(ctx, present, fresh); err != nil {
		return restored{}, fmt.Errorf("restore: %w", err)
	}
	if err := keys.write(fresh); err != nil {
		return restored{}, fmt.Errorf("restore: %w", err)
	}
	if err := cli.SyncDir(string(fresh)); err != nil {
		return restored{}, fmt.Errorf("restore: %w", err)
	}
	if done.Replaced, err = fresh.takePlaceOf(c.Data, there, time.Now()); err != nil {
		return restored{}, fmt.Errorf("restore: %w", err)
	}
	data := "--data " + c.Data
	if done.Lost.any() {
		done.Next = append(done.Next, "accountledger new-incarnation "+data+" --reason TEXT")
	}
	done.Next = append(done.Next, "accountledger admin-key "+data)
	return done, nil
}

// same reports whether two paths name the same directory.
func same(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return filepath.Clean(a) == filepath.Clean(b)
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}

func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// lastReplaced returns the directory that the last restore replaced, "" if there
// is none.
func (d directory) lastReplaced() (directory, error) {
	all, err := filepath.Glob(string(d) + replacedSuffix + "*")
	if err != nil || len(all) == 0 {
		return "", err
	}
	return directory(slices.Max(all)), nil // their names end in the time
}

// foundKeys are the keys of a restored directory, and where they are from.
type foundKeys struct {
	master     string // file with the master key; "" in the environment
	masterText string // what master.key will contain; "" for no file
	logKey     string // contents of log.key and log.vkey
	logVKey    string
	known      verifiers
}

// findKeys looks for the keys that a backup needs in it, and in the present
// directory, which may be "".
func findKeys(c cli.Config, backup, present directory) (k foundKeys, err error) {
	switch {
	case os.Getenv(masterKeyEnv) != "":
	case c.MasterKeyFile != "":
		k.master = c.MasterKeyFile
	default:
		for _, d := range []directory{backup, present} {
			if d == "" || k.master != "" {
				continue
			}
			text, err := cli.ReadTrimmed(d.path(masterKeyFile))
			if err == nil {
				k.master, k.masterText = d.path(masterKeyFile), text
			} else if !errors.Is(err, fs.ErrNotExist) {
				return k, fmt.Errorf("restore: %w", err)
			}
		}
		if k.master == "" {
			return k, &refusal{
				title: "nothing was restored",
				what:  fmt.Sprintf("There is no master key: neither %s nor %s exists.", backup.path(masterKeyFile), directory(c.Data).path(masterKeyFile)),
				cause: "Backups do not contain the master key, and the data directory is gone or was created with --master-key-file.",
				do:    "Name the file with the key with --master-key-file, or set " + masterKeyEnv + ".",
				err:   errNoMasterKey,
			}
		}
	}
	var newest verifiers
	for _, d := range []directory{backup, present} {
		if d == "" {
			continue
		}
		// A directory may lack its public key: it is derived from the secret one.
		_, vkey, known, err := d.signer()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil && d == backup {
			return k, fmt.Errorf("restore: the backup: %w", err)
		}
		if err != nil {
			continue // the present directory may be damaged
		}
		if newest != nil && ledgerID(newest[0].Name()) != ledgerID(known[0].Name()) {
			continue // lostBy refuses this
		}
		if newest != nil && incarnation(known[0].Name()) <= incarnation(newest[0].Name()) {
			continue
		}
		newest = known
		if k.logKey, err = cli.ReadTrimmed(d.path(logKeyFile)); err != nil {
			return k, fmt.Errorf("restore: %w", err)
		}
		if k.logVKey, err = cli.ReadTrimmed(d.path(logVKeyFile)); errors.Is(err, fs.ErrNotExist) {
			k.logVKey, err = vkey, nil
		}
		if err != nil {
			return k, fmt.Errorf("restore: %w", err)
		}
	}
	if newest == nil {
		return k, &refusal{
			title: "nothing was restored",
			what:  fmt.Sprintf("There is no key to sign the log with: neither %s nor %s exists.", backup.path(logKeyFile), directory(c.Data).path(logKeyFile)),
			cause: "The backup does not contain log.key, and the data directory is gone.",
			do:    "Copy log.key from where you keep it into " + string(backup) + ".",
		}
	}
	k.known = newest
	// The backup's own log.vkey must be of the same ledger.
	if text, err := cli.ReadTrimmed(backup.path(logVKeyFile)); err == nil {
		own, err := parseVerifiers(text)
		if err != nil {
			return k, fmt.Errorf("restore: the backup: %s: %w", logVKeyFile, err)
		}
		if ledgerID(own[0].Name()) != ledgerID(newest[0].Name()) {
			return k, refuse(refuseKeyPair, nil, "data", string(backup))
		}
	}
	return k, nil
}

// write writes the keys into the directory d. log.key and log.vkey are last, because
// a directory without them is not a ledger.
func (k foundKeys) write(d directory) error {
	for _, file := range []struct {
		name, text string
		mode       fs.FileMode
	}{{masterKeyFile, k.masterText, 0o600}, {logKeyFile, k.logKey, 0o600}, {logVKeyFile, k.logVKey, 0o644}} {
		if file.text == "" {
			continue
		}
		if err := cli.CreateFile(d.path(file.name), file.text+"\n", file.mode); err != nil {
			return err
		}
	}
	return nil
}

// openEnds opens the first and the last sealed event of the log, which proves that
// keys.db and the master key are those of the log.
func (r *reader) openEnds(ctx context.Context) error {
	keys, err := r.keys(ctx)
	if err != nil {
		return err
	}
	defer keys.Close()
	codec := domain.Codec{Keys: keys}
	head, err := r.log.Head(ctx)
	if err != nil {
		return err
	}
	const some = 100
	for _, after := range []eventstore.Position{0, max(0, head-some)} {
		if head == 0 {
			break
		}
		for page, err := range r.log.Subscribe(ctx, after) {
			if err != nil {
				return err
			}
			for _, rec := range page[:min(some, len(page))] {
				if _, err := codec.Decode(rec); err != nil {
					return fmt.Errorf("the keys do not open event %d: %w", rec.Position, err)
				}
			}
			break
		}
	}
	return nil
}

// lostBy returns which events the backup lacks that the present directory, which
// may be "", or the last signed checkpoint has seen.
func lostBy(ctx context.Context, c cli.Config, backup *reader, present directory, known verifiers) (lostEvents, error) {
	head, err := backup.log.Head(ctx)
	if err != nil {
		return lostEvents{}, err
	}
	lost := lostEvents{After: head, Exact: true}
	seen := func(file string, position eventstore.Position) {
		if n := int64(position - lost.After); n > lost.Events {
			lost.Events, lost.Seen = n, file
		}
	}
	if present != "" {
		if err := refuseOther(backup.dir, present); err != nil {
			return lost, err
		}
	}
	if present != "" && !present.before(backup) {
		pc := c
		pc.Data = string(present)
		live, err := openReadOnly(ctx, pc, backup.logger)
		if err == nil {
			var now eventstore.Position
			if now, err = live.log.Head(ctx); err == nil {
				lost.After, err = common(ctx, backup.log, live.log, min(head, now))
			}
			if err == nil && now > lost.After {
				seen(logFile, now)
				lost.Since, err = timeAt(ctx, live.log, lost.After+1)
			}
			err = errors.Join(err, live.close())
		}
		found := present.sightings(ctx)
		for _, s := range found {
			seen(s.File, s.Position)
		}
		if err != nil {
			// The log may have had more than the files that follow it.
			made, statErr := present.has(logFile)
			lost.Exact = statErr == nil && !made && len(found) == 0
		}
	}
	msg, err := lastNote(c)
	if err != nil || msg == nil {
		return lost, err
	}
	kept, err := known.open(msg)
	switch {
	case err != nil && ledgerID(originIn(msg)) == ledgerID(known[0].Name()):
		lost.Exact = false // of an incarnation that the keys do not know
	case err != nil:
		return lost, refuse(refuseSignedElse, nil, "file", c.LastSigned, "other", cli.Printable(ledgerID(originIn(msg))), "id", ledgerID(known[0].Name()))
	default:
		seen("last-signed", eventstore.Position(kept.Size))
	}
	return lost, nil
}

// before reports whether the directory is that of an earlier incarnation than the
// reader's: an operator has decided to continue without its last events.
func (d directory) before(r *reader) bool {
	mine, theirs := incarnationOf(d), incarnationOf(r.dir)
	return mine >= 0 && mine < theirs
}

// incarnationOf returns the number of the directory's incarnation, -1 if it is not
// known.
func incarnationOf(d directory) int {
	text, err := cli.ReadTrimmed(d.path(logVKeyFile))
	if err != nil {
		return -1
	}
	known, err := parseVerifiers(text)
	if err != nil {
		return -1
	}
	return incarnation(known[0].Name())
}

// erasuresIn returns the keys that the log in a directory says are destroyed.
func erasuresIn(ctx context.Context, c cli.Config, d directory, like *reader) (map[eventstore.KeyID]bool, error) {
	c.Data = string(d)
	r, err := openReadOnly(ctx, c, like.logger)
	if err != nil {
		return nil, err
	}
	defer r.close()
	all := map[eventstore.KeyID]bool{}
	for page, err := range r.selected(ctx, eventsOptions{}) {
		if err != nil {
			return nil, err
		}
		for _, rec := range page {
			if key, ok := domain.ErasedKey(rec.Type, rec.Clear); ok {
				all[key] = true
			}
		}
	}
	return all, nil
}

// lastNote returns the note in the file of the setting last-signed, if any.
func lastNote(c cli.Config) ([]byte, error) {
	if c.LastSigned == "" {
		return nil, nil
	}
	return readNote(c.LastSigned)
}

// originIn returns the origin in a note, unverified.
func originIn(msg []byte) string {
	origin, _, _ := strings.Cut(string(msg), "\n")
	return origin
}

// refuseOther returns an error if the directory present is that of another ledger
// than the backup.
func refuseOther(backup, present directory) error {
	var ids []string
	for _, d := range []directory{backup, present} {
		text, err := cli.ReadTrimmed(d.path(logVKeyFile))
		if err != nil {
			return nil // nothing to compare with
		}
		known, err := parseVerifiers(text)
		if err != nil {
			return nil
		}
		ids = append(ids, ledgerID(known[0].Name()))
	}
	if ids[0] == ids[1] {
		return nil
	}
	return &refusal{
		title: "nothing was restored",
		what:  fmt.Sprintf("The backup is of %s, but %s is of %s.", ids[0], present, ids[1]),
		cause: "The backup or the data directory is not the one that you meant.",
		do:    "Name another directory with --data, or move the data directory away.",
	}
}

// common returns the position of the last event that two logs share, up to a
// position that both have.
func common(ctx context.Context, a, b storeReader, to eventstore.Position) (eventstore.Position, error) {
	low, high := eventstore.Position(0), to // they share low; what follows high is not compared
	for low < high {
		middle := low + (high-low+1)/2
		x, err := recordAt(ctx, a, middle)
		if err != nil {
			return 0, err
		}
		y, err := recordAt(ctx, b, middle)
		if err != nil {
			return 0, err
		}
		if x.ID == y.ID {
			low = middle
		} else {
			high = middle - 1
		}
	}
	return low, nil
}

// recordAt returns the event at a position.
func recordAt(ctx context.Context, log storeReader, p eventstore.Position) (eventstore.Recorded, error) {
	for page, err := range log.Subscribe(ctx, p-1) {
		if err != nil {
			return eventstore.Recorded{}, err
		}
		return page[0], nil
	}
	return eventstore.Recorded{}, ctx.Err()
}

func timeAt(ctx context.Context, log storeReader, p eventstore.Position) (time.Time, error) {
	rec, err := recordAt(ctx, log, p)
	return rec.Time, err
}

// keepErased destroys in the copy the keys that the present directory has
// destroyed, so that accounts that were erased after the backup stay erased. It
// returns how many keys the backup still had.
func (r *reader) keepErased(ctx context.Context, present, fresh directory) (int, error) {
	if present == "" {
		return 0, nil
	}
	gone, err := present.destroyed(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		r.logger.Warn("keys.db of the replaced directory cannot be read; accounts that were erased after the backup exist again", "err", err)
		return 0, nil
	}
	had, err := fresh.destroyed(ctx)
	if err != nil {
		return 0, err
	}
	want := map[uint64]bool{}
	for slot := range gone {
		want[slot] = !had[slot]
	}
	// After a roll-back, slots are used again for other keys. Between incarnations
	// only erasures in the log, which name the key itself, are certain.
	var named map[eventstore.KeyID]bool
	if incarnationOf(present) != incarnationOf(r.dir) {
		if named, err = erasuresIn(ctx, r.config, present, r); err != nil {
			r.logger.Warn("the log of the replaced directory cannot be read; accounts that were erased after the backup may exist again", "err", err)
			return 0, nil
		}
	}
	var keys []eventstore.KeyID
	for page, err := range r.selected(ctx, eventsOptions{}) {
		if err != nil {
			return 0, err
		}
		for _, rec := range page {
			if rec.KeyID != (eventstore.KeyID{}) && want[rec.KeyID.Slot()] && (named == nil || named[rec.KeyID]) {
				want[rec.KeyID.Slot()] = false
				keys = append(keys, rec.KeyID)
			}
		}
	}
	if len(keys) == 0 {
		return 0, nil
	}
	master, err := r.dir.masterKey(r.config, false, r.logger)
	if err != nil {
		return 0, err
	}
	copied, err := seal.Open(ctx, seal.Config{Path: fresh.path(keysFile), Master: master})
	if err != nil {
		return 0, err
	}
	for _, key := range keys {
		if err := copied.Destroy(ctx, key); err != nil {
			return 0, errors.Join(err, copied.Close())
		}
	}
	return len(keys), errors.Join(copied.Close(), ownOnly(fresh.path(keysFile)))
}

// destroyed returns the slots of the keys that keys.db has destroyed.
func (d directory) destroyed(ctx context.Context) (map[uint64]bool, error) {
	db, err := openDatabase(d.path(keysFile))
	if err != nil {
		return nil, err
	}
	defer db.Close()
	rows, err := db.QueryContext(ctx, "SELECT slot FROM keys WHERE wrapped = x''")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	all := map[uint64]bool{}
	for rows.Next() {
		var slot int64
		if err := rows.Scan(&slot); err != nil {
			return nil, err
		}
		all[uint64(slot)] = true
	}
	return all, rows.Err()
}

// takePlaceOf gives the directory the name data, and renames what had that name, if
// anything. It returns the new name of that. Whenever the program is killed, one
// of the two complete directories has the name.
func (d directory) takePlaceOf(data string, there bool, now time.Time) (replaced string, err error) {
	parent := filepath.Dir(data)
	if !there {
		if err := os.Rename(string(d), data); err != nil {
			return "", err
		}
		return "", cli.SyncDir(parent)
	}
	replaced = data + replacedSuffix + now.UTC().Format("20060102T150405Z")
	for i := 2; ; i++ {
		taken, err := exists(replaced)
		if err != nil {
			return "", err
		}
		if !taken {
			break
		}
		replaced = data + replacedSuffix + now.UTC().Format("20060102T150405Z") + "-" + strconv.Itoa(i)
	}
	if err := os.Rename(string(d), replaced); err != nil {
		return "", err
	}
	err = unix.Renameat2(unix.AT_FDCWD, replaced, unix.AT_FDCWD, data, unix.RENAME_EXCHANGE)
	switch {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.ENOTSUP):
		// The file system cannot exchange names. After a crash between these two
		// renames there is no directory of that name, and restore can be repeated.
		if err = os.Rename(replaced, string(d)); err == nil {
			if err = os.Rename(data, replaced); err == nil {
				err = os.Rename(string(d), data)
			}
		}
	case errors.Is(err, unix.EBUSY):
		err = fmt.Errorf("%s is a mount point, which cannot be renamed: the verified copy is %s; stop what uses the directory and exchange their contents", data, replaced)
	}
	if err != nil {
		return "", err
	}
	return replaced, cli.SyncDir(parent)
}

func (d restored) print(out cli.Console) error {
	if out.JSON {
		return out.Document(d)
	}
	out.Printf("restored %d events from %s and verified them\n", d.Position, d.From)
	if d.Replaced != "" {
		out.Printf("the previous directory is %s\n", d.Replaced)
	}
	if d.Lost.any() {
		out.Printf("lost: %s\n", d.Lost)
	}
	if d.Erasures > 0 {
		out.Printf("destroyed again: the keys of %d accounts that were erased after the backup\n", d.Erasures)
	}
	out.Printf("next:\n")
	for _, command := range d.Next {
		out.Printf("  %s\n", command)
	}
	return nil
}
