package importer

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"time"

	"accountledger/domain"
	"accountledger/eventstore"
)

// Outcome is what became of a row.
type Outcome string

// The outcomes.
const (
	Created   Outcome = "CREATED"
	Updated   Outcome = "UPDATED"
	Unchanged Outcome = "UNCHANGED" // the account says already what the record says
	Failed    Outcome = "FAILED"
)

// Result is what is told about a row. It holds no personal data, given a key
// that is none.
type Result struct {
	Row      int64       `json:"row"` // of the input, counted from 1
	Key      string      `json:"key,omitzero"`
	Sub      string      `json:"sub,omitzero"`
	Outcome  Outcome     `json:"outcome"`
	Code     domain.Code `json:"code,omitzero"`   // why the ledger refused
	Events   int         `json:"events"`          // appended; of a failed row too, see Job.Run
	Joined   []string    `json:"joined,omitzero"` // ids of groups
	Left     []string    `json:"left,omitzero"`
	Warnings []Finding   `json:"warnings"`
	Faults   []Finding   `json:"faults"`

	missed   []string            // pointers to members that the mapping does not deal with
	position eventstore.Position // of the account's last event
}

// change brings one account to what a draft says.
type change struct {
	*Job
	draft  *draft
	dryRun bool
	result Result
}

// apply brings the account to what d says. An error is ours and ends the
// import; what the rules refuse is in the result.
func (j *Job) apply(ctx context.Context, d *draft) (Result, error) {
	c := change{Job: j, draft: d, result: Result{Key: d.key, Sub: d.sub, Outcome: Failed}}
	if len(d.faults) > 0 {
		c.result.Warnings, c.result.Faults = d.warnings, d.faults
		return c.result, nil
	}
	outcome, err := c.bring(ctx)
	c.result.Warnings = d.warnings
	refused, ok := errors.AsType[*domain.Error](err)
	switch {
	case ok && len(refused.Faults) == 0:
		c.result.Code, c.result.Faults = refused.Code, []Finding{{Rule: refused.Detail}}
	case ok:
		c.result.Code = refused.Code
		for _, fault := range refused.Faults {
			c.result.Faults = append(c.result.Faults, Finding{Field: fault.Pointer, Rule: fault.Detail})
		}
	case err != nil:
		return c.result, err
	default:
		c.result.Outcome = outcome
	}
	return c.result, nil
}

// bring creates the account or updates it. New rows come among new ones, and
// known rows among known ones: after a new one it asks for a creation without
// looking first, which saves a read; after a known one it looks first, because
// asking in vain costs the store a commit and the account a key.
func (c *change) bring(ctx context.Context) (Outcome, error) {
	d := c.draft
	var refused error
	if c.lastWasNew.Load() {
		if refused = c.create(ctx); domain.CodeOf(refused) == "" {
			return Created, refused
		}
	}
	account, err := c.Ledger.Account(ctx, d.sub)
	if err != nil {
		return Failed, err
	}
	c.lastWasNew.Store(!account.Exists())
	switch {
	case account.Exists():
		return c.update(ctx)
	case refused != nil:
		return Failed, refused
	}
	return Created, c.create(ctx)
}

func (c *change) create(ctx context.Context) error {
	same := func(pointer string) string { return pointer }
	return c.ask(ctx, c.draft.createdTime, same, func() domain.Command { return c.draft.command() })
}

// update asks for every difference between the account and the draft; which
// there are, the ledger's rules say. What they would refuse is found before
// anything is appended, all but identifiers that another account has.
func (c *change) update(ctx context.Context) (Outcome, error) {
	c.dryRun = true
	err := c.differences(ctx)
	if err != nil || c.result.Events == 0 {
		c.forget()
		return Unchanged, err
	}
	c.dryRun = false
	c.forget()
	return Updated, c.differences(ctx)
}

// forget forgets what a dry run would have done.
func (c *change) forget() { c.result.Events, c.result.Joined, c.result.Left = 0, nil, nil }

func (c *change) differences(ctx context.Context) error {
	d := c.draft
	account, err := c.Ledger.Account(ctx, d.sub)
	if err != nil {
		return err
	}
	// An account that has ended refuses this, and would not refuse a status.
	if _, err := domain.Decide(domain.Setting{Config: domain.NewConfig()}, account, domain.SetCustomFields{}); err != nil {
		return err
	}
	never := time.Time{}
	for i, n := range slices.Concat(d.identities, d.unset) {
		place := func(pointer string) string {
			return "/identities/" + strconv.Itoa(i) + pointer
		}
		command := func() domain.Command { return domain.LinkIdentity{Identity: n.identity()} }
		known := slices.IndexFunc(account.Identities, n.is)
		if known < 0 && i >= len(d.identities) {
			continue
		}
		if known >= 0 {
			x := account.Identities[known]
			if n.providerUserID != "" && n.providerUserID != x.ProviderUserID {
				return &domain.Error{Code: domain.CodeIdentityConflict, Detail: "The account's identity of this provider has another providerUserId, which never changes."}
			}
			command = func() domain.Command { return domain.UpdateProfile{IdentityID: x.IdentityID, Patch: n.patch()} }
		}
		if err := c.ask(ctx, never, place, command); err != nil {
			return err
		}
	}
	// After the profiles, whose refused values may be kept here.
	place := func(pointer string) string { return "/customFields" + pointer }
	if err := c.ask(ctx, never, place, func() domain.Command { return domain.SetCustomFields{Values: d.customValues()} }); err != nil {
		return err
	}
	for _, command := range c.belong(account) {
		place := func(pointer string) string { return "/groups" + pointer }
		if err := c.ask(ctx, never, place, func() domain.Command { return command }); err != nil {
			return err
		}
	}
	if !d.statusStated {
		return nil
	}
	same := func(pointer string) string { return pointer }
	return c.ask(ctx, never, same, func() domain.Command { return domain.SetStatus{Status: d.status} })
}

// is reports whether x is the identity that n speaks of.
func (n *identityDraft) is(x domain.Identity) bool {
	return x.Provider == n.provider && (n.provider == domain.ProviderSelf || x.ProviderUserID == n.providerUserID)
}

// request is how every command of the import is to be carried out.
func (j *Job) request() domain.Request {
	return domain.Request{Admin: !j.Limited, Meta: domain.Metadata{
		Actor: j.Actor, CorrelationID: j.run, ReasonCode: "import",
	}}
}

// ask asks a command of the account. Where the rules refuse values that the
// mapping has a policy for, it asks what is left. place brings the pointer of a
// fault into the form it has in an account.
func (c *change) ask(ctx context.Context, effective time.Time, place func(string) string, command func() domain.Command) error {
	request := c.request()
	request.DryRun, request.Meta.EffectiveTime = c.dryRun, effective
	for {
		result, err := c.Ledger.Execute(ctx, request, c.draft.sub, command())
		if refused, ok := errors.AsType[*domain.Error](err); ok {
			placed := *refused
			placed.Faults = slices.Clone(refused.Faults)
			for i := range placed.Faults {
				placed.Faults[i].Pointer = place(placed.Faults[i].Pointer)
			}
			if c.draft.mend(&placed) {
				continue
			}
			return &placed
		}
		c.result.Events += len(result.Events)
		for _, x := range result.Events {
			switch e := x.Event.(type) {
			case domain.GroupJoined:
				c.result.Joined = append(c.result.Joined, e.GroupID)
			case domain.GroupLeft:
				c.result.Left = append(c.result.Left, e.GroupID)
			}
		}
		c.result.position = max(c.result.position, result.State.Position)
		return err
	}
}
