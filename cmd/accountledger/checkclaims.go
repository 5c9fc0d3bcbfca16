package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"slices"
	"strings"

	"accountledger/cmd/accountledger/cli"
	"accountledger/domain"
	"accountledger/eventstore"
)

// claimID stands for a claim. A sorted list of them takes 24 bytes for each
// claim, less than a map, and there are a few million.
type claimID struct {
	key   [16]byte // digest of kind and key
	owner [8]byte  // digest of the owner
}

func claimIDOf(k eventstore.Claim) (id claimID) {
	key, owner := sha256.Sum256([]byte(k.Kind+"\x00"+k.Key)), sha256.Sum256([]byte(k.Owner))
	copy(id.key[:], key[:])
	copy(id.owner[:], owner[:])
	return id
}

func compareClaimIDs(a, b claimID) int {
	return cmp.Or(bytes.Compare(a.key[:], b.key[:]), bytes.Compare(a.owner[:], b.owner[:]))
}

// claims compares the log's claims with those that the accounts need. Claims of
// accounts that changed meanwhile, beside a running server, are left out.
func (ch *checked) claims(ctx context.Context, r *reader, codec domain.Codec, out cli.Console) error {
	version, err := r.log.ClaimsVersion(ctx)
	if err != nil {
		return err
	}
	if version < domain.ClaimsVersion {
		ch.note(logFile, "claims on identifiers are by the rules of an older version and were not compared; the next start rebuilds them")
		return nil
	}
	start, err := r.log.Head(ctx)
	if err != nil {
		return err
	}
	var held []claimID
	for k, err := range r.log.Claims(ctx) {
		if err != nil {
			return ch.unreadable(ctx, err)
		}
		held = append(held, claimIDOf(k))
	}
	slices.SortFunc(held, compareClaimIDs)
	needed := make([]bool, len(held))

	var missing, unneeded []eventstore.Claim
	p := out.Progress("claims", int64(start))
	defer p.End()
	var reported int64
	progress := func(done, _ int64) {
		p.Add(done - reported)
		reported = done
	}
	for k, err := range domain.Claims(ctx, r.log, codec, progress) {
		if err != nil {
			return ch.unreadable(ctx, err)
		}
		if i, found := slices.BinarySearchFunc(held, claimIDOf(k), compareClaimIDs); found {
			needed[i] = true
		} else {
			missing = ch.keep(missing, k)
		}
	}
	shared := map[[16]byte][]eventstore.Claim{} // of several accounts; in the order of their turn
	for i := 1; i < len(held); i++ {
		if held[i].key == held[i-1].key {
			shared[held[i].key] = nil
		}
	}
	if len(shared) > 0 || slices.Contains(needed, false) {
		for k, err := range r.log.Claims(ctx) {
			if err != nil {
				return ch.unreadable(ctx, err)
			}
			id := claimIDOf(k)
			if i, found := slices.BinarySearchFunc(held, id, compareClaimIDs); found && !needed[i] {
				unneeded = ch.keep(unneeded, k)
			}
			if owners, ok := shared[id.key]; ok {
				shared[id.key] = append(owners, k)
			}
		}
	}
	return ch.compareClaims(ctx, r, codec, start, missing, unneeded, shared)
}

// compareClaims adds the findings and notes on claims that do not agree, or that
// several accounts need.
func (ch *checked) compareClaims(ctx context.Context, r *reader, codec domain.Codec, start eventstore.Position,
	missing, unneeded []eventstore.Claim, shared map[[16]byte][]eventstore.Claim) error {
	changed, err := changedSince(ctx, r, start)
	if err != nil {
		return ch.unreadable(ctx, err)
	}
	account := func(stream string) (sub string, moving bool, err error) {
		sub, _ = strings.CutPrefix(stream, domain.AccountStream(""))
		for hops := 0; hops < 100; hops++ {
			moving = moving || changed[domain.AccountStream(sub)]
			into, err := combinedInto(ctx, r, codec, sub)
			if err != nil || into == "" {
				return sub, moving, err
			}
			sub = into
		}
		return sub, moving, nil
	}
	for _, list := range []struct {
		claims []eventstore.Claim
		detail string
	}{
		{missing, "the claim of account %s on its %s is missing: another account could take it"},
		{unneeded, "account %s has a claim on an identifier of kind %s that it does not have"},
	} {
		for _, k := range list.claims {
			if len(ch.Findings) == maxFindings {
				ch.Unlisted++
				continue
			}
			sub, moving, err := account(k.Owner)
			if err != nil {
				return ch.unreadable(ctx, err)
			}
			if !moving {
				ch.add(logFile, list.detail, cmp.Or(sub, "(none)"), k.Kind)
			}
		}
	}
	var notes []string
	for _, owners := range shared {
		if len(owners) < 2 {
			continue // one has released it meanwhile
		}
		var subs []string
		for _, k := range owners {
			sub, _, err := account(k.Owner)
			if err != nil {
				return ch.unreadable(ctx, err)
			}
			subs = append(subs, sub)
		}
		notes = append(notes, "accounts "+strings.Join(subs, ", ")+" have the same "+owners[0].Kind)
	}
	slices.Sort(notes)
	for _, n := range notes {
		ch.note(logFile, n+": it leads to none of them until it is changed in all but one, or the accounts are merged")
	}
	return nil
}

// keep appends k to all, or counts it if there are far more than are listed.
func (ch *checked) keep(all []eventstore.Claim, k eventstore.Claim) []eventstore.Claim {
	if len(all) == 10*maxFindings {
		ch.Unlisted++
		return all
	}
	return append(all, k)
}

// unreadable adds a finding for an error, unless it is ctx's.
func (ch *checked) unreadable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	ch.add(logFile, "the claims on identifiers cannot be compared: %v", err)
	return nil
}

// changedSince returns the streams with events after a position, and those that
// such an event concerns as well.
func changedSince(ctx context.Context, r *reader, after eventstore.Position) (map[string]bool, error) {
	head, err := r.log.Head(ctx)
	changed := map[string]bool{}
	if err != nil || head <= after {
		return changed, err
	}
	for page, err := range r.log.Subscribe(ctx, after) {
		if err != nil {
			return nil, err
		}
		for _, rec := range page {
			changed[rec.Stream], changed[domain.Joined(rec)] = true, true
		}
		if page[len(page)-1].Position >= head {
			break
		}
	}
	return changed, nil
}

// combinedInto returns the account that sub was merged into, or "".
func combinedInto(ctx context.Context, r *reader, codec domain.Codec, sub string) (into string, err error) {
	for rec, err := range r.log.ReadStream(ctx, domain.AccountStream(sub), 0) {
		if err != nil {
			return "", err
		}
		x, err := codec.Decode(rec)
		if err != nil {
			return "", err
		}
		switch e := x.Event.(type) {
		case domain.AccountCombined:
			into = e.Into
		case domain.AccountRestored, domain.AccountErased:
			into = ""
		}
	}
	return into, nil
}
