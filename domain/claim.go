package domain

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"

	"accountledger/eventstore"
)

// ClaimsVersion is the version of the rules by which accounts claim their
// identifiers. Version 2 compares e-mail addresses in Unicode normalization form
// NFC, and gives usernames that are read as an e-mail address or a mobile number
// the claim of that kind, too.
const ClaimsVersion = 2

// identifier is a kind and a comparison key that at most one account has.
type identifier struct {
	kind Kind
	key  string
}

// holding is an identifier that an account needs a claim on, and the account
// that holds the claim: the one the identifier originates from.
type holding struct {
	identifier
	sub string
}

// claims compares the identifiers of accounts before and after a commit, and
// returns the claims that the commit takes and those that it releases. So no
// command has to name its claims.
//
// A merge moves no claim: the merged account keeps the claims on its own
// identifiers, so that un-merging has nothing to give back. The claims depend on
// nothing but the accounts, so that they can be compared with the log's and
// rebuilt.
func claims(before, after []Account, claim func(kind, value, owner string) eventstore.Claim) (take, release []eventstore.Claim) {
	had, needs := holdings(before...), holdings(after...)
	return difference(needs, had, claim), difference(had, needs, claim)
}

// difference returns the claims of those in all that are not in others.
func difference(all, others []holding, claim func(kind, value, owner string) eventstore.Claim) (rest []eventstore.Claim) {
	both := make(map[holding]bool, len(others))
	for _, h := range others {
		both[h] = true
	}
	for _, h := range all {
		if !both[h] {
			rest = append(rest, h.claim(claim))
		}
	}
	return rest
}

func (h holding) claim(claim func(kind, value, owner string) eventstore.Claim) eventstore.Claim {
	return claim(string(h.kind), h.key, AccountStream(h.sub))
}

// holdings returns the claims that accounts need. If several identities of an
// account have the same identifier and come from different accounts, the first
// of these holds the claim for all.
//
// A username that is read as an e-mail address or a mobile number where the kind
// is not given needs that claim, too: otherwise the username of one account
// could lead where another one's address leads. A user id at provider self is
// read as any of the three, because logins of that provider accept all of them.
// These claims come last, so that a refusal rather names the kind that the
// caller gave.
func holdings(accounts ...Account) []holding {
	var all []holding
	for _, a := range accounts {
		var also []holding
		held := make(map[identifier]bool, 4*len(a.Identities))
		add := func(h holding) {
			if !held[h.identifier] {
				held[h.identifier] = true
				all = append(all, h)
			}
		}
		hold := func(u UserID, sub string) {
			key := u.Key()
			add(holding{identifier{u.Type, key}, sub})
			switch {
			case u.Type == KindProviderUserID && u.Provider == ProviderSelf:
				name := compareKey(KindUsername, "", u.Value)
				also = append(also, holding{identifier{KindUsername, name}, sub})
				also = append(also, alsoRead(u.Value, name, sub)...)
			case u.Type == KindUsername:
				also = append(also, alsoRead(u.Value, key, sub)...)
			}
		}
		for _, u := range a.UserIDs {
			if i, ok := a.identity(u.IdentityID); ok {
				hold(u, cmp.Or(i.From, a.Sub))
			}
		}
		if a.CombinedInto == "" { // otherwise the surviving account holds the claims of a's fields
			for _, u := range fieldIDs(a.CustomFields, a.FieldClaims, false) {
				sub := a.Sub
				for _, c := range a.CombinedFrom {
					if slices.Contains(c.FilledFields, u.FieldKey) {
						sub = c.Sub
					}
				}
				hold(u, sub)
			}
			for _, c := range a.CombinedFrom {
				for _, u := range fieldIDs(c.CustomFields, c.FieldClaims, false) {
					hold(u, c.Sub)
				}
			}
		}
		for _, h := range also {
			add(h)
		}
	}
	return all
}

// alsoRead returns the holdings of identifiers of other kinds that a username may
// be read as, given as it is written and as its comparison key, which is another
// spelling that leads to the account.
func alsoRead(username, key, sub string) (all []holding) {
	if !strings.ContainsAny(key, "@+") {
		return nil // neither an e-mail address nor a mobile number: nearly all usernames
	}
	for _, spelling := range []string{username, key} {
		for _, kind := range []Kind{KindEmail, KindMobileNumber} {
			if normal, err := Normalize(kind, strings.TrimSpace(spelling)); err == nil {
				all = append(all, holding{identifier{kind, compareKey(kind, "", normal)}, sub})
			}
		}
	}
	return all
}

// Log is what reading all accounts needs of a log.
type Log interface {
	Head(ctx context.Context) (eventstore.Position, error)
	ReadStream(ctx context.Context, stream string, from eventstore.Revision) iter.Seq2[eventstore.Recorded, error]
	Subscribe(ctx context.Context, after eventstore.Position) iter.Seq2[[]eventstore.Recorded, error]
}

// Claims yields the claims that the accounts in log need, as the ledger takes
// and releases them event by event: those of each account together, and the
// accounts in the order of their creation. It calls progress, if not nil, with
// the number of events read. It keeps one account in memory.
//
// Two accounts need the same claim if the rules by which they took their
// identifiers allowed that, and the present ones do not.
func Claims(ctx context.Context, log Log, codec Codec, progress func(done, total int64)) iter.Seq2[eventstore.Claim, error] {
	return func(yield func(eventstore.Claim, error) bool) {
		for a, err := range accounts(ctx, log, codec, progress) {
			if err != nil {
				yield(eventstore.Claim{}, fmt.Errorf("domain: claims: %w", err))
				return
			}
			for _, h := range holdings(a) {
				if !yield(h.claim(codec.Keys.Claim), nil) {
					return
				}
			}
		}
	}
}

// Claims yields the claims that the accounts need; see the function Claims.
func (l *Ledger) Claims(ctx context.Context) iter.Seq2[eventstore.Claim, error] {
	return Claims(ctx, l.log, l.codec, nil)
}

// RebuildClaims replaces the log's claims by those of ClaimsVersion if they are
// of an earlier version. Of several accounts with the same identifier the oldest
// one holds the claim, and the others wait for it. No command may run meanwhile.
// A rebuild that was interrupted has changed nothing, and is repeated.
func (l *Ledger) RebuildClaims(ctx context.Context, progress func(done, total int64)) error {
	version, err := l.log.ClaimsVersion(ctx)
	if err != nil {
		return fmt.Errorf("domain: version of the claims: %w", err)
	}
	if version >= ClaimsVersion {
		return nil
	}
	if err := l.log.Reclaim(ctx, ClaimsVersion, Claims(ctx, l.log, l.codec, progress)); err != nil {
		return fmt.Errorf("domain: rebuild the claims: %w", err)
	}
	return nil
}

// accounts yields all accounts in log in the order of their creation. It does not
// cache them, and they remember no commands.
func accounts(ctx context.Context, log Log, codec Codec, progress func(done, total int64)) iter.Seq2[Account, error] {
	return func(yield func(Account, error) bool) {
		head, err := log.Head(ctx)
		if err != nil {
			yield(Account{}, err)
			return
		}
		var a Account
		var done int64
		for rec, err := range byStream(ctx, log, head) {
			if err != nil {
				yield(Account{}, err)
				return
			}
			if sub, ok := strings.CutPrefix(rec.Stream, accountPrefix); ok {
				if rec.Revision == 0 {
					if a.Sub != "" && !yield(a, nil) {
						return
					}
					a = NewAccount(sub)
				}
				x, err := codec.Decode(rec)
				if err != nil {
					yield(Account{}, err)
					return
				}
				x.Meta.CommandID = ""
				a = Evolve(a, x)
			}
			if done++; progress != nil && (done%1024 == 0 || done == int64(head)) {
				progress(done, int64(head))
			}
		}
		if a.Sub != "" {
			yield(a, nil)
		}
	}
}

// byStream yields the events up to a position stream by stream, in the order of
// the streams' creation.
func byStream(ctx context.Context, log Log, to eventstore.Position) iter.Seq2[eventstore.Recorded, error] {
	return func(yield func(eventstore.Recorded, error) bool) {
		if all, ok := log.(eventstore.StreamReader); ok {
			for page, err := range all.ByStream(ctx, to) {
				if err != nil {
					yield(eventstore.Recorded{}, err)
					return
				}
				for _, rec := range page {
					if !yield(rec, nil) {
						return
					}
				}
			}
			return
		}
		var streams []string
		for at := eventstore.Position(0); at < to; {
			for page, err := range log.Subscribe(ctx, at) {
				if err != nil {
					yield(eventstore.Recorded{}, err)
					return
				}
				for _, rec := range page {
					if at = rec.Position; rec.Revision == 0 && at <= to {
						streams = append(streams, rec.Stream)
					}
				}
				if at >= to {
					break
				}
			}
		}
		for _, stream := range streams {
			for rec, err := range log.ReadStream(ctx, stream, 0) {
				if err == nil && rec.Position > to {
					break
				}
				if !yield(rec, err) || err != nil {
					return
				}
			}
		}
	}
}
