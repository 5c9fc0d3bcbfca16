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

// Outcome is the result of importing a row.
type Outcome string

// The outcomes.
const (
	Created   Outcome = "CREATED"
	Updated   Outcome = "UPDATED"
	Unchanged Outcome = "UNCHANGED" // the account already has the record's values
	Failed    Outcome = "FAILED"
)

// Result describes what the import did with a row. It contains no personal data,
// unless the key is personal.
type Result struct {
	Row      int64       `json:"row"` // of the input, counted from 1
	Key      string      `json:"key,omitzero"`
	Sub      string      `json:"sub,omitzero"`
	Outcome  Outcome     `json:"outcome"`
	Code     domain.Code `json:"code,omitzero"`   // of the ledger's error
	Events   int         `json:"events"`          // the number of events appended; a failed row can have some, see Job.Run
	Joined   []string    `json:"joined,omitzero"` // ids of groups that the account joined
	Left     []string    `json:"left,omitzero"`   // ids of groups that the account left
	Warnings []Finding   `json:"warnings"`
	Faults   []Finding   `json:"faults"`

	unmapped []string            // pointers to members of the source that the mapping neither uses nor ignores
	position eventstore.Position // of the account's last event
}

// change changes one account to match a draft.
type change struct {
	*Job
	draft  *draft
	dryRun bool
	result Result
}

// apply changes the account to match d. A refusal by the domain's rules is in the
// result; an error is one of the ledger itself and ends the import.
func (j *Job) apply(ctx context.Context, d *draft) (Result, error) {
	c := change{Job: j, draft: d, result: Result{Key: d.key, Sub: d.sub, Outcome: Failed}}
	if len(d.faults) > 0 {
		c.result.Warnings, c.result.Faults = d.warnings, d.faults
		return c.result, nil
	}
	outcome, err := c.createOrUpdate(ctx)
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

// createOrUpdate creates or updates the account. It expects a new account after a
// new one, and an existing one after an existing one. For an expected new account
// it tries the creation without reading the account, which saves a read. For an
// expected existing one it reads first, because a refused creation costs a commit
// and a key.
func (c *change) createOrUpdate(ctx context.Context) (Outcome, error) {
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
	return c.execute(ctx, c.draft.createdTime, same, func() domain.Command { return c.draft.command() })
}

// update changes the account with one command per part. A dry run first finds
// whether anything differs, and every refusal except identifiers that another
// account has, before any event is appended.
func (c *change) update(ctx context.Context) (Outcome, error) {
	c.dryRun = true
	err := c.differences(ctx)
	if err != nil || c.result.Events == 0 {
		c.resetResult()
		return Unchanged, err
	}
	c.dryRun = false
	c.resetResult()
	return Updated, c.differences(ctx)
}

// resetResult removes the results of a dry run.
func (c *change) resetResult() { c.result.Events, c.result.Joined, c.result.Left = 0, nil, nil }

// differences executes the commands that make the account match the draft.
func (c *change) differences(ctx context.Context) error {
	d := c.draft
	account, err := c.Ledger.Account(ctx, d.sub)
	if err != nil {
		return err
	}
	// Refuse an erased, deleted or combined account here, because it would not
	// refuse a change of status.
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
		if err := c.execute(ctx, never, place, command); err != nil {
			return err
		}
	}
	// After the profiles, because their invalid values may be kept here.
	place := func(pointer string) string { return "/customFields" + pointer }
	if err := c.execute(ctx, never, place, func() domain.Command { return domain.SetCustomFields{Values: d.customValues()} }); err != nil {
		return err
	}
	for _, command := range c.membershipCommands(account) {
		place := func(pointer string) string { return "/groups" + pointer }
		if err := c.execute(ctx, never, place, func() domain.Command { return command }); err != nil {
			return err
		}
	}
	if !d.statusStated {
		return nil
	}
	same := func(pointer string) string { return pointer }
	return c.execute(ctx, never, same, func() domain.Command { return domain.SetStatus{Status: d.status} })
}

// is reports whether n describes the identity x.
func (n *identityDraft) is(x domain.Identity) bool {
	return x.Provider == n.provider && (n.provider == domain.ProviderSelf || x.ProviderUserID == n.providerUserID)
}

// request returns the request for the import's commands.
func (j *Job) request() domain.Request {
	return domain.Request{Admin: !j.Limited, Meta: domain.Metadata{
		Actor: j.Actor, CorrelationID: j.run, ReasonCode: "import",
	}}
}

// execute executes a command on the account. If the ledger refuses values for
// which the mapping has a policy, it applies the policy and retries the command.
// place converts a fault's pointer into the command to one into the account.
func (c *change) execute(ctx context.Context, effective time.Time, place func(string) string, command func() domain.Command) error {
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
			if c.draft.handleRefusal(&placed) {
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
