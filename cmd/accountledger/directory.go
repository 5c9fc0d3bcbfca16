package main

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"
	"golang.org/x/mod/sumdb/note"

	"accountledger/cmd/accountledger/cli"
	"accountledger/eventstore/seal"
	"accountledger/eventstore/tlog"
)

// masterKeyEnv holds the master key itself. It is not a setting: every process
// can read a flag, and a settings file is no place for a key.
const masterKeyEnv = cli.EnvPrefix + "MASTER_KEY"

// The files of a data directory, in the order in which the first start creates
// them. Each exists only if those before it do, except the master key, which may
// be elsewhere. This distinguishes an incomplete first start from a directory that
// has lost a file. The first start is complete when log.vkey exists.
const (
	masterKeyFile = "master.key"           // decrypts keys.db; only in a backup on request
	logKeyFile    = "log.key"              // signs the checkpoints of the log; secret
	keysFile      = "keys.db"              // the accounts' keys, wrapped
	logFile       = "log.db"               // the log
	logVKeyFile   = "log.vkey"             // verifies the checkpoints; public
	viewsFile     = "views.db"             // read models
	deliveryFile  = "delivery.db"          // progress of webhooks
	adminKeyFile  = cli.AdminKeyFile       // the first API key
	importsDir    = "imports"              // outcomes of imports over HTTP
	forkPlanFile  = "new-incarnation.json" // a roll-back that is not complete
)

// directory is the path of a data directory.
type directory string

func (d directory) path(name string) string { return filepath.Join(string(d), name) }

func (d directory) has(name string) (bool, error) {
	_, err := os.Stat(d.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// identity is the identity of a ledger: the keys it was created with.
type identity struct {
	master seal.Master
	signer note.Signer
	vkey   string    // public key of signer
	known  verifiers // all keys of the ledger; the first is that of signer

	complete bool // the first start was completed: no file may be missing
}

// The checkpoints of a ledger have its id as their origin. After a roll-back,
// which starts a new incarnation, the origin is "<ledger id>/<n>".

// splitOrigin returns the ledger id in an origin, and the number of the
// incarnation, 0 for the first.
func splitOrigin(origin string) (id string, n int) {
	i := strings.LastIndexByte(origin, '/')
	if i < 0 || !strings.Contains(origin[:i], "/") {
		return origin, 0
	}
	if n, err := strconv.Atoi(origin[i+1:]); err == nil && n > 0 && strconv.Itoa(n) == origin[i+1:] {
		return origin[:i], n
	}
	return origin, 0
}

// ledgerID returns the id of the ledger whose checkpoints have this origin.
func ledgerID(origin string) string {
	id, _ := splitOrigin(origin)
	return id
}

// incarnation returns the number of the incarnation in an origin, 0 for the first.
func incarnation(origin string) int {
	_, n := splitOrigin(origin)
	return n
}

// originOf returns the origin of the checkpoints of an incarnation.
func originOf(id string, n int) string {
	if n == 0 {
		return id
	}
	return id + "/" + strconv.Itoa(n)
}

// verifiers are the public keys of a ledger, one for each incarnation, the newest
// first.
type verifiers []note.Verifier

// parseVerifiers reads the lines of log.vkey.
func parseVerifiers(text string) (verifiers, error) {
	var all verifiers
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		v, err := note.NewVerifier(line)
		if err != nil {
			return nil, fmt.Errorf("not a public key of a log: %w", err)
		}
		if len(all) > 0 {
			last := all[len(all)-1].Name()
			if ledgerID(last) != ledgerID(v.Name()) || incarnation(last) <= incarnation(v.Name()) {
				return nil, fmt.Errorf("the public key of %s is below that of %s; the keys must be those of one ledger, the newest first", v.Name(), last)
			}
		}
		all = append(all, v)
	}
	if len(all) == 0 {
		return nil, errors.New("not a public key of a log: it is empty")
	}
	return all, nil
}

// open returns the checkpoint in a signed note of any incarnation.
func (v verifiers) open(msg []byte) (tlog.Checkpoint, error) {
	origin, _, _ := strings.Cut(string(msg), "\n")
	for _, one := range v {
		if one.Name() == origin {
			return tlog.OpenCheckpoint(msg, one)
		}
	}
	return tlog.Checkpoint{}, fmt.Errorf("%w: its origin is %.200q", tlog.ErrCheckpoint, origin)
}

// lock keeps other processes out of the directory until the returned file is
// closed. The log has its own lock, but the first start creates keys before the
// log, and two processes must not both create them.
func (d directory) lock() (*os.File, error) {
	f, err := os.Open(string(d))
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	// verify holds the lock for an instant to find out whether a server runs.
	for range 10 {
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			break
		}
		time.Sleep(10 * time.Millisecond)
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	}
	switch {
	case err == nil:
		return f, nil
	case errors.Is(err, syscall.EWOULDBLOCK):
		return nil, errors.Join(fmt.Errorf("%w: %s", errLocked, d), f.Close())
	default:
		return nil, errors.Join(fmt.Errorf("lock %s: %w", d, err), f.Close())
	}
}

// inUse reports whether another process has the directory open for writing.
func (d directory) inUse() (bool, error) {
	f, err := os.Open(string(d))
	if err != nil {
		return false, err
	}
	defer f.Close() // ends the lock
	switch err := syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB); {
	case err == nil:
		return false, nil
	case errors.Is(err, syscall.EWOULDBLOCK):
		return true, nil
	default:
		return false, fmt.Errorf("lock %s: %w", d, err)
	}
}

// make creates the directory, or makes an existing one accessible only to its
// owner.
func (d directory) make(logger *slog.Logger) error {
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	info, err := os.Stat(string(d))
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	if info.Mode().Perm()&0o077 == 0 {
		return nil
	}
	// Do not change the permissions of a directory that is not a ledger's.
	if err := d.refuseForeign(); err != nil {
		return err
	}
	if err := os.Chmod(string(d), 0o700); err != nil {
		return fmt.Errorf("data directory: other users may read it, and its mode cannot be changed: %w", err)
	}
	logger.Warn("removed other users' access to the data directory", "data", string(d))
	return nil
}

// refuseForeign returns an error if the directory contains files that are not a
// ledger's.
func (d directory) refuseForeign() error {
	entries, err := os.ReadDir(string(d))
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	ours := []string{masterKeyFile, logKeyFile, keysFile, logFile, logVKeyFile, viewsFile, deliveryFile, adminKeyFile, importsDir, forkPlanFile, "lock", "lost+found", "."}
	for _, e := range entries {
		// Compare prefixes, because of names like log.db-wal.
		if !slices.ContainsFunc(ours, func(name string) bool { return strings.HasPrefix(e.Name(), name) }) {
			return fmt.Errorf("data directory: %s contains %s and is not a ledger: use an empty directory or that of a ledger", d, e.Name())
		}
	}
	return nil
}

// refuseEmpty returns an error if the directory has no ledger, but the file of the
// setting last-signed has a checkpoint of one.
func (d directory) refuseEmpty(c cli.Config, made map[string]bool) error {
	if c.LastSigned == "" || made[keysFile] || made[logFile] {
		return nil
	}
	if err := checkLastSigned(c); err != nil {
		return err
	}
	msg, err := readNote(c.LastSigned)
	if msg == nil || err != nil {
		return err
	}
	size := "some"
	if lines := strings.SplitN(string(msg), "\n", 3); len(lines) == 3 {
		if n, err := strconv.ParseInt(lines[1], 10, 64); err == nil {
			size = strconv.FormatInt(n, 10)
		}
	}
	return refuse(refuseEmpty, nil, "data", string(d), "file", c.LastSigned, "size", size)
}

// establish returns the identity of the ledger in d, which the caller has locked.
// In an empty directory it creates one, and it completes an interrupted first
// start. It never replaces a key that existing files depend on.
func (d directory) establish(c cli.Config, logger *slog.Logger) (identity, error) {
	if err := d.sweep(); err != nil {
		return identity{}, err
	}
	if rollingBack, err := d.has(forkPlanFile); err != nil {
		return identity{}, fmt.Errorf("data directory: %w", err)
	} else if rollingBack {
		return identity{}, refuse(refuseInterrupted, nil, "data", string(d))
	}
	order := []string{logKeyFile, keysFile, logFile, logVKeyFile, viewsFile, deliveryFile, adminKeyFile}
	made := map[string]bool{}
	for _, name := range order {
		there, err := d.has(name)
		if err != nil {
			return identity{}, fmt.Errorf("data directory: %w", err)
		}
		made[name] = there
	}
	if !made[logKeyFile] {
		if err := d.refuseForeign(); err != nil {
			return identity{}, err
		}
		if err := d.refuseEmpty(c, made); err != nil {
			return identity{}, err
		}
	}
	for i, name := range order[:4] {
		if made[name] || name == logVKeyFile && made[logFile] { // log.vkey can be derived from log.key
			continue
		}
		if later := slices.IndexFunc(order[i+1:], func(n string) bool { return made[n] }); later >= 0 {
			if name == logKeyFile && made[keysFile] && made[logFile] {
				return identity{}, refuse(refuseNoLogKey, nil, "data", string(d))
			}
			return identity{}, refuse(refuseNoFile, nil, "data", string(d), "present", order[i+1+later], "file", name)
		}
	}

	var id identity
	var err error
	if id.master, err = d.masterKey(c, !made[keysFile], logger); err != nil {
		return identity{}, err
	}
	if !made[logKeyFile] {
		// The origin identifies this ledger in all checkpoints.
		skey, _, err := tlog.GenerateKey("accountledger/" + uuid.NewString())
		if err != nil {
			return identity{}, err
		}
		if err := cli.CreateFile(d.path(logKeyFile), skey+"\n", 0o600); err != nil {
			return identity{}, fmt.Errorf("data directory: %w", err)
		}
	}
	id.complete = slices.ContainsFunc(order[3:], func(name string) bool { return made[name] })
	id.signer, id.vkey, id.known, err = d.signer()
	return id, err
}

// signer reads log.key, and checks that the newest key in log.vkey, if that
// exists, is its public key.
func (d directory) signer() (_ note.Signer, vkey string, known verifiers, err error) {
	skey, err := cli.ReadTrimmed(d.path(logKeyFile))
	if err != nil {
		return nil, "", nil, fmt.Errorf("data directory: %w", err)
	}
	signer, err := note.NewSigner(skey)
	if err != nil {
		return nil, "", nil, fmt.Errorf("data directory: %s: not a signing key", d.path(logKeyFile))
	}
	if vkey, err = verifierKey(skey); err != nil {
		return nil, "", nil, fmt.Errorf("data directory: %s: %w", d.path(logKeyFile), err)
	}
	stored, err := cli.ReadTrimmed(d.path(logVKeyFile))
	if errors.Is(err, fs.ErrNotExist) {
		stored, err = vkey, nil
	}
	if err == nil {
		known, err = parseVerifiers(stored)
	}
	if err != nil {
		return nil, "", nil, fmt.Errorf("data directory: %s: %w", d.path(logVKeyFile), err)
	}
	if newest, _, _ := strings.Cut(stored, "\n"); strings.TrimSpace(newest) != vkey {
		return nil, "", nil, refuse(refuseKeyPair, nil, "data", string(d))
	}
	return signer, vkey, known, nil
}

// verifierKey returns the public key of a signing key in the format of package
// note: PRIVATE+KEY+<name>+<hash>+<base64 of the algorithm and the seed>.
func verifierKey(skey string) (string, error) {
	parts := strings.SplitN(skey, "+", 5)
	if len(parts) != 5 {
		return "", errors.New("not a signing key")
	}
	key, err := base64.StdEncoding.DecodeString(parts[4])
	if err != nil || len(key) != 1+ed25519.SeedSize {
		return "", errors.New("not a signing key")
	}
	public := ed25519.NewKeyFromSeed(key[1:]).Public().(ed25519.PublicKey)
	return note.NewEd25519VerifierKey(parts[2], public)
}

// complete creates log.vkey, which marks the first start as complete.
func (d directory) complete(vkey string) error {
	done, err := d.has(logVKeyFile)
	if err == nil && !done {
		err = cli.CreateFile(d.path(logVKeyFile), vkey+"\n", 0o644)
	}
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	return nil
}

// errNoMasterKey reports that the master key is not where it should be.
var errNoMasterKey = errors.New("master key")

// masterKey reads the master key from the configured place. If there is none and
// make is true, it creates one.
func (d directory) masterKey(c cli.Config, make bool, logger *slog.Logger) (seal.Master, error) {
	text := os.Getenv(masterKeyEnv)
	if text != "" {
		if c.MasterKeyFile != "" {
			return seal.Master{}, cli.Usagef("there are two master keys, in %s and in %s: give only one", masterKeyEnv, c.MasterKeyFile)
		}
		master, err := seal.LoadMaster(text)
		if err != nil {
			return seal.Master{}, fmt.Errorf("%s: %w", masterKeyEnv, err)
		}
		return master, nil
	}
	path := c.MasterKeyFile
	if path == "" {
		path = d.path(masterKeyFile)
	}
	text, err := cli.ReadTrimmed(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && make:
		master := seal.NewMaster()
		if err := cli.CreateFile(path, master.Reveal()+"\n", 0o600); err != nil {
			return seal.Master{}, fmt.Errorf("master key: %w", err)
		}
		logger.Warn("created a master key: keep a copy apart from the data directory and its backups; without it all personal data is lost", "file", path)
		return master, nil
	case errors.Is(err, fs.ErrNotExist):
		return seal.Master{}, fmt.Errorf("%w: there is no file %s, and the data in %s needs it: restore the file, name another with --master-key-file, or set %s", errNoMasterKey, path, d, masterKeyEnv)
	case err != nil:
		return seal.Master{}, fmt.Errorf("master key: %w", err)
	}
	master, err := seal.LoadMaster(text)
	if err != nil {
		return seal.Master{}, fmt.Errorf("master key: %s: %w", path, err)
	}
	// systemd protects its credentials by other means than the mode.
	credential := os.Getenv("CREDENTIALS_DIRECTORY")
	if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o077 != 0 && (credential == "" || filepath.Dir(path) != credential) {
		logger.Warn("other users may read the master key", "file", path)
	}
	return master, nil
}

// sweep removes incomplete files that a crash left.
func (d directory) sweep() error {
	left, err := filepath.Glob(d.path(cli.NewFilePrefix + "*"))
	for _, path := range left {
		err = errors.Join(err, os.RemoveAll(path))
	}
	return err
}

// renameKey returns the signing key skey under another name, with the same seed.
func renameKey(skey, name string) (string, error) {
	parts := strings.SplitN(skey, "+", 5)
	if len(parts) != 5 {
		return "", errors.New("not a signing key")
	}
	parts[2] = name
	vkey, err := verifierKey(strings.Join(parts, "+"))
	if err != nil {
		return "", err
	}
	parts[3] = strings.Split(vkey, "+")[1] // the hash depends on the name
	return strings.Join(parts, "+"), nil
}
