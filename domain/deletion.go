package domain

import (
	"encoding/hex"
	"slices"
	"time"

	"accountledger/eventstore"
)

// Deletion is an account's scheduled deletion. When it is due says the
// schedule.
type Deletion struct {
	ScheduleID string `json:"scheduleId"`
	From       Status `json:"from"` // the status to restore if it is cancelled
}

// DeletionScheduled makes the account DELETED for a time of grace, after
// which it ends. The schedule is planned in the same commit.
type DeletionScheduled struct {
	ScheduleID string    `json:"scheduleId" pii:"clear"`
	From       Status    `json:"from" pii:"clear"`
	DueTime    time.Time `json:"dueTime" pii:"clear"`
}

func (DeletionScheduled) eventType() string { return "account.deletion-scheduled.v1" }

func (e DeletionScheduled) evolve(a Account, _ Entry) Account {
	a.Deletion = Deletion{e.ScheduleID, e.From}
	a.Status, a.StatusReason = StatusDeleted, ""
	return a
}

func (e DeletionScheduled) public(x Entry) []publicEvent {
	return []publicEvent{
		{"USER_DELETION_SCHEDULED", deletionScheduled{x.Sub(), e.DueTime}},
		{"USER_STATUS_CHANGED", statusChanged{x.Sub(), e.From, StatusDeleted, x.Meta.ReasonCode}},
	}
}

func (DeletionScheduled) catalogue() []PublicType {
	return []PublicType{{Name: "USER_DELETION_SCHEDULED", When: "the account is to be erased when its grace is over", Data: deletionScheduled{},
		Aliases: []Alias{{"ACCOUNT_DELETION_SCHEDULED", "", nil}}}}
}

type deletionScheduled struct {
	Sub     string    `json:"sub"`
	DueTime time.Time `json:"dueTime"`
}

// DeletionCancelled restores an account whose deletion was scheduled.
type DeletionCancelled struct {
	To     Status `json:"to" pii:"clear"`
	Reason string `json:"reason,omitzero" pii:"seal"` // free text
}

func (DeletionCancelled) eventType() string { return "account.deletion-cancelled.v1" }

func (e DeletionCancelled) evolve(a Account, _ Entry) Account {
	a.Deletion = Deletion{}
	a.Status, a.StatusReason = e.To, e.Reason
	return a
}

func (e DeletionCancelled) public(x Entry) []publicEvent {
	return []publicEvent{
		{"USER_DELETION_CANCELLED", deletionCancelled{x.Sub(), e.To}},
		{"USER_STATUS_CHANGED", statusChanged{x.Sub(), StatusDeleted, e.To, x.Meta.ReasonCode}},
	}
}

func (DeletionCancelled) catalogue() []PublicType {
	return []PublicType{{Name: "USER_DELETION_CANCELLED", When: "the account is not to be erased after all", Data: deletionCancelled{}}}
}

type deletionCancelled struct {
	Sub    string `json:"sub"`
	Status Status `json:"userStatus"` // restored
}

// AccountErased ends an account: its personal data is gone. It is the last
// event of its commit, and nothing of it is sealed.
type AccountErased struct {
	KeyID string `json:"kid" pii:"clear"` // the destroyed key, in hexadecimal
}

func (AccountErased) eventType() string { return "account.erased.v1" }

func (AccountErased) evolve(a Account, x Entry) Account {
	return Account{Sub: a.Sub, Status: StatusDeleted, CreatedTime: a.CreatedTime, ErasedTime: x.Time, commands: a.commands}
}

func (AccountErased) public(x Entry) []publicEvent {
	return []publicEvent{{"USER_DELETED", subOnly{x.Sub()}}}
}

func (AccountErased) catalogue() []PublicType {
	return []PublicType{{Name: "USER_DELETED", When: "the account has ended and its personal data is destroyed", Data: subOnly{},
		Aliases: []Alias{{"ACCOUNT_DELETED", "", nil}}}}
}

type subOnly struct {
	Sub string `json:"sub"`
}

// ErasureCompleted says that the key is destroyed and nothing sealed under it
// is left in any file of the ledger.
type ErasureCompleted struct {
	KeyID string `json:"kid" pii:"clear"`
}

func (ErasureCompleted) eventType() string { return "account.erasure-completed.v1" }

func (ErasureCompleted) evolve(a Account, _ Entry) Account {
	a.erasureCompleted = true
	return a
}

func (ErasureCompleted) public(Entry) []publicEvent { return internal } // USER_DELETED has told of it

// erasures are the other accounts that end when a does: those combined into it.
func erasures(a Account) []string { return a.subs()[1:] }

// erase ends a and the others with it. mark is of the schedule that was to do
// it, if there was one.
func erase(a Account, others []Account, mark Event) (own []Event, rest [][]Event) {
	end := func(b Account, except string) []Event {
		events := cancelPlanned(b, reasonErased, func(s Schedule) bool { return s.ScheduleID != except })
		return append(events, AccountErased{KeyID: hex.EncodeToString(b.key[:])})
	}
	if m, ok := mark.(ScheduleExecuted); ok {
		own = append([]Event{m}, end(a, m.ScheduleID)...)
	} else {
		own = end(a, "")
	}
	for _, o := range others {
		rest = append(rest, end(o, ""))
	}
	return own, rest
}

// restore ends a scheduled deletion with the account in a state.
func restore(a Account, to Status, reason string) []Event {
	events := cancelPlanned(a, reasonRestored, func(s Schedule) bool { return s.ScheduleID == a.Deletion.ScheduleID })
	events = append(events, DeletionCancelled{to, reason})
	return append(events, verifiedCancels(a, to)...)
}

// MaxGrace bounds how long a deletion can be ahead.
const MaxGrace = 3650 * 24 * time.Hour

// ScheduleAccountDeletion makes the account DELETED, and plans its end for
// when the grace is over. Asking again changes nothing.
type ScheduleAccountDeletion struct {
	ScheduleID string // made by the caller
	Grace      time.Duration
}

func (ScheduleAccountDeletion) command() {}

func (ScheduleAccountDeletion) admits(s Status) bool { return s == StatusDeleted }

func (c ScheduleAccountDeletion) decide(s Setting, a Account) ([]Event, error) {
	switch {
	case c.Grace < 0 || c.Grace > MaxGrace:
		return nil, refuse(CodeInvalidRequest, "The grace of a deletion is 0 to %d hours.", MaxGrace/time.Hour)
	case a.Status == StatusDeleted:
		return nil, nil
	}
	due := s.Now.Add(c.Grace).Truncate(time.Microsecond)
	return []Event{
		SchedulePlanned{ScheduleID: c.ScheduleID, Kind: ScheduleDeletion, DueTime: due, Origin: ScheduleManual},
		DeletionScheduled{c.ScheduleID, a.Status, due},
	}, nil
}

// CancelAccountDeletion restores the status the account had when its deletion
// was scheduled.
type CancelAccountDeletion struct{}

func (CancelAccountDeletion) command() {}

func (CancelAccountDeletion) admits(s Status) bool { return s == StatusDeleted }

func (CancelAccountDeletion) decide(_ Setting, a Account) ([]Event, error) {
	if a.Deletion == (Deletion{}) {
		return nil, refuse(CodeDeletionNotFound, "No deletion of the account is scheduled.")
	}
	return restore(a, a.Deletion.From, ""), nil
}

// EraseAccount ends the account at once, and with it those combined into it.
type EraseAccount struct{}

func (EraseAccount) command() {}

func (EraseAccount) admits(s Status) bool { return s == StatusDeleted }

func (c EraseAccount) decide(s Setting, a Account) ([]Event, error) {
	own, _, err := c.decideJoint(s, a, nil)
	return own, err
}

func (EraseAccount) others(a Account) []string { return erasures(a) }

func (EraseAccount) decideJoint(s Setting, a Account, others []Account) ([]Event, [][]Event, error) {
	var mark Event
	if i := slices.IndexFunc(a.planned(), func(p Schedule) bool { return p.ScheduleID == a.Deletion.ScheduleID }); i >= 0 {
		p := a.planned()[i]
		mark = ScheduleExecuted{ScheduleID: p.ScheduleID, Kind: p.Kind, State: ScheduleDone, DueTime: p.DueTime}
	}
	own, rest := erase(a, others, mark)
	return own, rest, nil
}

// CompleteErasure records that everything an erasure has to remove is gone.
type CompleteErasure struct{ KeyID string }

func (CompleteErasure) command() {}

func (c CompleteErasure) decide(_ Setting, a Account) ([]Event, error) {
	if a.erasureCompleted {
		return nil, nil
	}
	return []Event{ErasureCompleted(c)}, nil
}

// ErasedKey returns the key that was destroyed, given the stored type and the
// clear bytes of an AccountErased. Of other and of malformed events ok is false.
func ErasedKey(storedType string, clear []byte) (key eventstore.KeyID, ok bool) {
	event, _, err := DecodeEvent(storedType, clear, nil)
	if err != nil {
		return key, false
	}
	erased, ok := event.(AccountErased)
	if !ok {
		return key, false
	}
	id, err := hex.DecodeString(erased.KeyID)
	return key, err == nil && copy(key[:], id) == len(key)
}
