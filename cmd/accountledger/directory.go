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
	"strings"
	"syscall"

	"github.com/google/uuid"
	"golang.org/x/mod/sumdb/note"

	"accountledger/cmd/accountledger/cli"
	"accountledger/eventstore/seal"
	"accountledger/eventstore/tlog"
)

// masterKeyEnv holds the master key itself. It is not a setting: every process
// can read a flag, and a settings file is no place for a key.
const masterKeyEnv = cli.EnvPrefix + "MASTER_KEY"

// The files of a data directory. Each may only be there when those before it
// are, but for the master key, which may lie elsewhere: that is the order in
// which a first start makes them, and how one that was cut short is told from
// a directory that has lost a file. log.vkey says that the first start is done.
const (
	masterKeyFile = "master.key"     // opens keys.db; never in a backup unless asked for
	logKeyFile    = "log.key"        // signs the checkpoints of the log; secret
	keysFile      = "keys.db"        // the accounts' keys, wrapped
	logFile       = "log.db"         // the log
	logVKeyFile   = "log.vkey"       // verifies the checkpoints; public
	viewsFile     = "views.db"       // read models
	deliveryFile  = "delivery.db"    // how far webhooks are
	adminKeyFile  = cli.AdminKeyFile // the first API key
	importsDir    = "imports"        // what imports over HTTP came to
)

// directory is where a ledger lives.
type directory string

func (d directory) path(name string) string { return filepath.Join(string(d), name) }

func (d directory) has(name string) (bool, error) {
	_, err := os.Stat(d.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// identity is what makes a ledger this one: the keys it was made with.
type identity struct {
	master seal.Master
	signer note.Signer
	vkey   string
}

// lock keeps other processes out of the directory until the file it returns is
// closed. The log has a lock of its own, but a first start makes keys before
// there is a log, and two of them must not make two.
func (d directory) lock() (*os.File, error) {
	f, err := os.Open(string(d))
	if err != nil {
		return nil, err
	}
	switch err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); {
	case err == nil:
		return f, nil
	case errors.Is(err, syscall.EWOULDBLOCK):
		return nil, errors.Join(fmt.Errorf("%w: %s", errLocked, d), f.Close())
	default:
		return nil, errors.Join(fmt.Errorf("lock %s: %w", d, err), f.Close())
	}
}

// make makes the directory, or sees that nobody else can look into the one
// there is.
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
	// A foreign directory's permissions are not ours to change.
	if err := d.refuseForeign(); err != nil {
		return err
	}
	if err := os.Chmod(string(d), 0o700); err != nil {
		return fmt.Errorf("data directory: others may read it and that cannot be changed: %w", err)
	}
	logger.Warn("took from others the right to read the data directory", "data", string(d))
	return nil
}

// refuseForeign refuses a directory that holds something and no ledger.
func (d directory) refuseForeign() error {
	entries, err := os.ReadDir(string(d))
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	ours := []string{masterKeyFile, logKeyFile, keysFile, logFile, logVKeyFile, viewsFile, deliveryFile, adminKeyFile, importsDir, "lock", "lost+found", "."}
	for _, e := range entries {
		// By their beginnings: a database has its -wal beside it.
		if !slices.ContainsFunc(ours, func(name string) bool { return strings.HasPrefix(e.Name(), name) }) {
			return fmt.Errorf("data directory: %s holds %s and no ledger: name an empty directory or a ledger's", d, e.Name())
		}
	}
	return nil
}

// establish returns the identity of the ledger in d, which the caller has
// locked. In an empty directory it makes one; where that was cut short, it
// goes on from there. It never makes a key that files in d already need.
func (d directory) establish(c cli.Config, logger *slog.Logger) (identity, error) {
	if err := d.sweep(); err != nil {
		return identity{}, err
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
	}
	for i, name := range order[:4] {
		if made[name] || name == logVKeyFile && made[logFile] { // that one can be made again
			continue
		}
		if later := slices.IndexFunc(order[i+1:], func(n string) bool { return made[n] }); later >= 0 {
			return identity{}, fmt.Errorf("data directory: %s has %s but not %s: restore it from a backup", d, order[i+1+later], name)
		}
	}

	var id identity
	var err error
	if id.master, err = d.masterKey(c, !made[keysFile], logger); err != nil {
		return identity{}, err
	}
	if !made[logKeyFile] {
		// The origin names this incarnation of the ledger for good.
		skey, _, err := tlog.GenerateKey("accountledger/" + uuid.NewString())
		if err != nil {
			return identity{}, err
		}
		if err := cli.CreateFile(d.path(logKeyFile), skey+"\n", 0o600); err != nil {
			return identity{}, fmt.Errorf("data directory: %w", err)
		}
	}
	id.signer, id.vkey, err = d.signer()
	return id, err
}

// signer reads log.key, and makes sure that log.vkey, where it is there, is
// the other half of it.
func (d directory) signer() (note.Signer, string, error) {
	skey, err := cli.ReadTrimmed(d.path(logKeyFile))
	if err != nil {
		return nil, "", fmt.Errorf("data directory: %w", err)
	}
	signer, err := note.NewSigner(skey)
	if err != nil {
		return nil, "", fmt.Errorf("data directory: %s: not a signing key", d.path(logKeyFile))
	}
	vkey, err := verifierKey(skey)
	if err != nil {
		return nil, "", fmt.Errorf("data directory: %s: %w", d.path(logKeyFile), err)
	}
	stored, err := cli.ReadTrimmed(d.path(logVKeyFile))
	if err == nil && stored != vkey {
		err = fmt.Errorf("%s and %s are not of one pair: restore them from a backup", d.path(logKeyFile), d.path(logVKeyFile))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, "", fmt.Errorf("data directory: %w", err)
	}
	return signer, vkey, nil
}

// verifierKey is the public half of a signing key as package note writes it:
// PRIVATE+KEY+<name>+<hash>+<base64 of the algorithm and the seed>.
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

// complete marks the first start as done.
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

// masterKey reads the master key from where it is configured to be. With make
// it makes one where there is none.
func (d directory) masterKey(c cli.Config, make bool, logger *slog.Logger) (seal.Master, error) {
	text := os.Getenv(masterKeyEnv)
	if text != "" {
		if c.MasterKeyFile != "" {
			return seal.Master{}, cli.Usagef("there are two master keys, one in %s and one in %s: give one", masterKeyEnv, c.MasterKeyFile)
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
		logger.Warn("made a master key: keep a copy apart from the data directory and its backups, for without it all personal data is lost", "file", path)
		return master, nil
	case errors.Is(err, fs.ErrNotExist):
		return seal.Master{}, fmt.Errorf("master key: %s is not there, and the ledger in %s has data under it: put it back, or name it with --master-key-file or in %s", path, d, masterKeyEnv)
	case err != nil:
		return seal.Master{}, fmt.Errorf("master key: %w", err)
	}
	master, err := seal.LoadMaster(text)
	if err != nil {
		return seal.Master{}, fmt.Errorf("master key: %s: %w", path, err)
	}
	// What systemd hands over is guarded by systemd, by more than a mode.
	credential := os.Getenv("CREDENTIALS_DIRECTORY")
	if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o077 != 0 && (credential == "" || filepath.Dir(path) != credential) {
		logger.Warn("others may read the master key", "file", path)
	}
	return master, nil
}

// sweep removes what a crash left of files that were being made.
func (d directory) sweep() error {
	left, err := filepath.Glob(d.path(cli.NewFilePrefix + "*"))
	for _, path := range left {
		err = errors.Join(err, os.RemoveAll(path))
	}
	return err
}
