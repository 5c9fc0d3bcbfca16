package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"accountledger/cmd/accountledger/cli"
	"accountledger/eventstore/seal"
	"accountledger/projections"
)

// refusal is the error of a command that does not use a data directory because
// its files do not fit together. It says what an operator needs to know to
// decide; the exit code is ExitFaults.
type refusal struct {
	title    string // "": the ledger was not opened
	what     string // what does not fit
	cause    string // what probably happened
	do       string // what to do
	override string // the flag that opens the ledger nevertheless, and what it loses; "" if there is none
	err      error  // nil: none
}

// Error returns the refusal on several lines, none of them wider than help.
func (r *refusal) Error() string {
	var b strings.Builder
	b.WriteString(cmp.Or(r.title, "the ledger was not opened"))
	for _, part := range []struct{ name, text string }{
		{"problem", r.what}, {"cause", r.cause}, {"do", r.do}, {"override", r.override},
	} {
		if part.text == "" {
			part.text = "none"
		}
		b.WriteString("\n" + hanging(part.name+":", part.text))
	}
	return b.String()
}

func (r *refusal) Unwrap() error { return r.err }

// ExitCode implements the interface that cli.ExitCode looks for.
func (*refusal) ExitCode() int { return cli.ExitFaults }

// hanging wraps text in a column to the right of name.
func hanging(name, text string) string {
	const indent = 12
	var b strings.Builder
	line := fmt.Sprintf("  %-*s", indent-2, name)
	for _, word := range strings.Fields(text) {
		if len(line) > indent && len(line)+1+len(word) > helpWidth {
			b.WriteString(line + "\n")
			line = strings.Repeat(" ", indent)
		}
		if len(line) > indent {
			line += " "
		}
		line += word
	}
	return b.String() + line
}

// The names of the refusals in the table below.
const (
	refuseNoFile         = "file-missing"
	refuseNoLogKey       = "log-key-missing"
	refuseKeyPair        = "log-key-differs"
	refuseMaster         = "master-key-differs"
	refuseForeign        = "log-foreign"
	refuseNewer          = "newer-version"
	refuseCorrupt        = "log-damaged"
	refuseNoWAL          = "wal-missing"
	refuseTampered       = "log-tampered"
	refuseNoEvents       = "log-empty"
	refuseUnsealed       = "log-unsealed"
	refuseUncovered      = "log-uncovered"
	refuseNoKeys         = "keys-empty"
	refuseKeysForeign    = "keys-foreign"
	refuseKeysBehind     = "keys-behind"
	refuseViewsAhead     = "views-ahead"
	refuseViewsBeside    = "views-beside"
	refuseViewsForeign   = "views-foreign"
	refuseSentAhead      = "delivery-ahead"
	refuseSentBeside     = "delivery-beside"
	refuseSentForeign    = "delivery-foreign"
	refuseInterrupted    = "incarnation-interrupted"
	refusePlan           = "incarnation-foreign"
	refuseEmpty          = "directory-empty"
	refuseSignedElse     = "last-signed-foreign"
	refuseSignedDamaged  = "last-signed-damaged"
	refuseSignedReplaced = "last-signed-incarnation"
	refuseSignedAhead    = "last-signed-ahead"
)

// Texts that several refusals share.
const (
	olderLog   = "log.db was restored from an older copy, or lost its log.db-wal."
	otherLog   = "log.db was restored from an older copy and has grown since."
	mixedFiles = "Files of two data directories were mixed when they were copied."

	rollBack = "Put the newer files back. If there are none, and the events are lost for good, run 'accountledger new-incarnation'."
	together = "Put back the files that belong together."

	// What it loses to move a file that follows the log away.
	loseViews = "Move views.db away to open the ledger without it: the server rebuilds it. " +
		"Events that log.db does not have are lost, and neither clients nor auditors learn of it."
	loseSent = "Move delivery.db away to open the ledger without it: webhooks start again at the position they were registered with, and send events again. " +
		"Events that log.db does not have are lost, and neither clients nor auditors learn of it."
)

// refusals has the texts of all refusals, for the messages and the table in
// docs/operation.md. Words in angle brackets are replaced.
var refusals = []struct{ name, what, cause, do, override string }{
	{refuseNoFile, "<data> has <present> but not <file>.",
		"The directory was copied or restored without that file, or the file was deleted.",
		"Restore <file>, or all of the directory, from a backup.", ""},
	{refuseNoLogKey, "<data> has no log.key, which signs the log.",
		"A copy was restored that does not contain the key.",
		"Copy log.key from where you keep it into <data>. 'check' and 'verify' work without it.", ""},
	{refuseKeyPair, "log.key and log.vkey in <data> are not a key pair.",
		"One of the files is from another ledger, or from before a roll-back.",
		"Restore both files from the same backup.", ""},
	{refuseMaster, "The master key does not open keys.db.",
		"The key is that of another ledger, or keys.db is.",
		"Name the file with this ledger's key with --master-key-file, or restore keys.db.", ""},
	{refuseForeign, "log.db in <data> is not the log of this ledger.",
		"The file is from another ledger or another program, or it is empty.",
		"Restore log.db from a backup of this ledger.", ""},
	{refuseNewer, "A newer version of the program wrote the files in <data>.",
		"The program was downgraded.",
		"Install the newer version, or restore a backup from before the upgrade.", ""},
	{refuseCorrupt, "log.db in <data> is damaged.",
		"The disk or a copy of the file is faulty.",
		"Run 'accountledger verify', which names what is damaged, and restore the directory from a backup.", ""},
	{refuseNoWAL, "log.db in <data> was in use, but its write-ahead log, log.db-wal, is missing.",
		"The files were copied or moved without log.db-wal, after a crash or beside a running server; or, after a crash, another SQLite program opened log.db and merged the file into it, and then nothing is lost.",
		"Copy log.db-wal from where log.db is from. Use 'accountledger backup' to copy a ledger.",
		"--accept-missing-wal opens the ledger without the events in that file; if it was not merged, they are lost."},
	{refuseNoEvents, "log.db in <data> is missing or empty, but the ledger is not new.",
		"The file was truncated or deleted, or a copy of it failed.",
		"Put the file back, with its log.db-wal. If it is lost, restore a backup.", ""},
	{refuseUnsealed, "log.db in <data> is that of an earlier version and cannot be sealed. Event <position>: <why>.",
		"The log was changed, or keys.db belongs to another log.",
		"Keep a copy of the directory. Run 'accountledger verify', then restore a backup.", ""},
	{refuseUncovered, "log.db in <data> is that of an earlier version, and nothing shows who wrote event <position>: <why>.",
		"The server was killed before the last upgrade, in the second before it would have signed the event.",
		"Start and stop the earlier version, which signs the event, or look at it with 'accountledger events'.",
		"--accept-uncovered accepts it, and later events like it, as the ledger's."},
	{refuseNoKeys, "keys.db in <data> is missing or empty.",
		"The file was truncated or deleted, or a copy of it failed.",
		"Put the file back, with its keys.db-wal. If it is lost, restore a backup.", ""},
	{refuseKeysForeign, "keys.db in <data> belongs to another ledger.",
		"Directories were mixed up when files were copied.",
		"Put back the keys.db of this ledger, with its keys.db-wal.", ""},
	{refuseKeysBehind, "keys.db in <data> is older than log.db: <why>.",
		"keys.db was restored from an older copy, or lost its keys.db-wal.",
		"Put back the newer keys.db with its keys.db-wal, or restore keys.db and log.db from one backup.", ""},
	{refuseTampered, "The files in <data> are not what this ledger wrote.<why>",
		"log.db or keys.db was changed by another program or an attacker, or files of different times were mixed.",
		"Keep a copy of the directory. Run 'accountledger verify', then restore a backup.", ""},
	{refuseViewsAhead, "views.db in <data> has seen event <seen>, but log.db ends at event <head>.", olderLog, rollBack, loseViews},
	{refuseViewsBeside, "views.db in <data> has seen another event at position <seen> than log.db has there.", otherLog, together, loseViews},
	{refuseViewsForeign, "views.db in <data> belongs to another ledger than log.db.", mixedFiles, together,
		"Move views.db away to open the ledger without it: the server rebuilds it, and nothing is lost if log.db is the right one."},
	{refuseSentAhead, "delivery.db in <data> has seen event <seen>, but log.db ends at event <head>.", olderLog, rollBack, loseSent},
	{refuseSentBeside, "delivery.db in <data> has seen another event at position <seen> than log.db has there.", otherLog, together, loseSent},
	{refuseSentForeign, "delivery.db in <data> belongs to another ledger than log.db.", mixedFiles, together,
		"Move delivery.db away to open the ledger without it: webhooks start again at the position they were registered with, and send events again."},
	{refuseInterrupted, "A roll-back of the ledger in <data> is not complete.",
		"'accountledger new-incarnation' was interrupted.",
		"Run 'accountledger new-incarnation' again; it continues.", ""},
	{refusePlan, "<file> is not a plan that this ledger made.",
		"An attacker created the file, or it was copied from another directory.",
		"Move it away. If a roll-back was interrupted, run 'accountledger new-incarnation' with its reason again.", ""},
	{refuseEmpty, "<data> has no ledger, but <file> has a signed checkpoint of one, with <size> events.",
		"The disk of the data directory is not mounted, or the directory was moved.",
		"Mount or restore the directory. For a new ledger, name another file with --last-signed.", ""},
	{refuseSignedElse, "<file> has a checkpoint of <other>, but this ledger is <id>.",
		"Two ledgers use the same file, or a directory was replaced by that of another ledger.",
		"Give each ledger a file of its own with --last-signed, or restore the directory of <other>.", ""},
	{refuseSignedDamaged, "<file> is not a checkpoint that this ledger signed.",
		"The file was changed or damaged, or log.vkey was.",
		"Restore the file. If you cannot, move it away after 'accountledger verify' has verified the log.",
		"Without the file, the ledger cannot notice that an older log took the place of the present one."},
	{refuseSignedReplaced, "<file> has a checkpoint of incarnation <newer>, but log.key is that of incarnation <older>.",
		"The directory was restored from a copy that is older than the last roll-back.",
		"Put the newer files back. If you cannot, copy log.key and log.vkey from them, and then run 'accountledger new-incarnation'.", ""},
	{refuseSignedAhead, "<file> has a signed checkpoint of <size> events, but the log has another or an older state.",
		olderLog, rollBack, ""},
}

// refuse returns the named refusal. pairs are words in its text and their
// replacements.
func refuse(name string, err error, pairs ...string) *refusal {
	i := slices.IndexFunc(refusals, func(r struct{ name, what, cause, do, override string }) bool { return r.name == name })
	for i := 0; i < len(pairs); i += 2 {
		pairs[i] = "<" + pairs[i] + ">"
	}
	replace := strings.NewReplacer(pairs...).Replace
	r := refusals[i]
	return &refusal{what: replace(r.what), cause: replace(r.cause), do: replace(r.do), override: replace(r.override), err: err}
}

// aheadRefusal returns the refusal of a file that has followed another log than
// the one in c.Data.
func aheadRefusal(c cli.Config, e *projections.AheadError, err error) *refusal {
	name := map[string]string{
		projections.OtherLedger: refuseViewsForeign, projections.AheadOfLog: refuseViewsAhead, projections.OtherEvent: refuseViewsBeside,
	}[e.Why]
	if filepath.Base(e.File) == deliveryFile {
		name = map[string]string{
			projections.OtherLedger: refuseSentForeign, projections.AheadOfLog: refuseSentAhead, projections.OtherEvent: refuseSentBeside,
		}[e.Why]
	}
	return refuse(name, err, "data", c.Data, "seen", strconv.FormatInt(int64(e.Seen), 10), "head", strconv.FormatInt(int64(e.Head), 10))
}

// explain turns an error from opening the ledger in c.Data into a refusal, if it
// says that the files do not fit. It returns other errors unchanged.
func explain(c cli.Config, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*refusal](err); ok {
		return err
	}
	if r, ok := storeRefusal(c, err); ok {
		return r
	}
	if e, ok := errors.AsType[*projections.AheadError](err); ok {
		return aheadRefusal(c, e, err)
	}
	for _, known := range []struct {
		is   error
		name string
	}{
		{errStoreForeign, refuseForeign},
		{errStoreNewer, refuseNewer},
		{errStoreCorrupt, refuseCorrupt},
		{seal.ErrMaster, refuseMaster},
		{seal.ErrLedger, refuseKeysForeign},
		{seal.ErrEmpty, refuseNoKeys},
	} {
		if errors.Is(err, known.is) {
			return refuse(known.name, err, "data", c.Data)
		}
	}
	if errors.Is(err, fs.ErrNotExist) && c.Data != "" {
		// log.key is the only file that a complete copy may lack.
		if there, statErr := directory(c.Data).has(logKeyFile); statErr == nil && !there {
			if made, _ := directory(c.Data).has(logFile); made && strings.Contains(err.Error(), logKeyFile) {
				return refuse(refuseNoLogKey, err, "data", c.Data)
			}
		}
	}
	return err
}
