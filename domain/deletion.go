package domain

import (
	"encoding/hex"
	"slices"
	"time"

	"accountledger/eventstore"
)

// Deletion is an account's scheduled deletion. The schedule says when it is due.
type Deletion struct {
	ScheduleID string `json:"scheduleId" doc:"The schedule that erases the account."`
	From       Status `json:"from" doc:"The status restored if the deletion is cancelled."`
}

// DeletionScheduled makes the account DELETED. After a grace period, a schedule
// of the same commit erases it.
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
	return []PublicType{{Name: "USER_DELETION_SCHEDULED", When: "the account is scheduled for erasure after a grace period", Data: deletionScheduled{},
		Aliases: []Alias{{"ACCOUNT_DELETION_SCHEDULED", "", nil}}}}
}

type deletionScheduled struct {
	Sub     string    `json:"sub" doc:"The account."`
	DueTime time.Time `json:"dueTime" doc:"When the account will be erased."`
}

// DeletionCancelled cancels a scheduled deletion and restores the account.
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
	return []PublicType{{Name: "USER_DELETION_CANCELLED", When: "the scheduled erasure of the account is cancelled", Data: deletionCancelled{}}}
}

type deletionCancelled struct {
	Sub    string `json:"sub" doc:"The account."`
	Status Status `json:"userStatus" doc:"The restored status."`
}

// AccountErased ends an account: its personal data is destroyed. It is the
// account's last event in its commit, and has no sealed fields.
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
	return []PublicType{{Name: "USER_DELETED", When: "the account is erased and its personal data is destroyed", Data: subOnly{},
		Aliases: []Alias{{"ACCOUNT_DELETED", "", nil}}}}
}

type subOnly struct {
	Sub string `json:"sub" doc:"The account."`
}

// ErasureCompleted says that the key is destroyed and that no file of the ledger
// holds anything sealed under it.
type ErasureCompleted struct {
	KeyID string `json:"kid" pii:"clear"`
}

func (ErasureCompleted) eventType() string { return "account.erasure-completed.v1" }

func (ErasureCompleted) evolve(a Account, _ Entry) Account {
	a.erasureCompleted = true
	return a
}

func (ErasureCompleted) public(Entry) []publicEvent { return internal } // USER_DELETED was sent

// erasures returns the accounts that are erased with a: those merged into it.
func erasures(a Account) []string { return a.subs()[1:] }

// erase returns the events that end a and the others. mark is the ScheduleExecuted
// of the schedule that was planned to erase a, nil if there is none.
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

// restore cancels a scheduled deletion and gives the account a status.
func restore(a Account, to Status, reason string) []Event {
	events := cancelPlanned(a, reasonRestored, func(s Schedule) bool { return s.ScheduleID == a.Deletion.ScheduleID })
	events = append(events, DeletionCancelled{to, reason})
	return append(events, verifiedCancels(a, to)...)
}

// MaxGrace is the longest grace period of a deletion.
const MaxGrace = 3650 * 24 * time.Hour

// ScheduleAccountDeletion makes the account DELETED and plans its erasure after
// a grace period. Repeating it changes nothing.
type ScheduleAccountDeletion struct {
	ScheduleID string // chosen by the caller
	Grace      time.Duration
}

func (ScheduleAccountDeletion) command() {}

func (ScheduleAccountDeletion) admits(s Status) bool { return s == StatusDeleted }

func (c ScheduleAccountDeletion) decide(s Setting, a Account) ([]Event, error) {
	switch {
	case c.Grace < 0 || c.Grace > MaxGrace:
		return nil, refuse(CodeInvalidRequest, "grace must be 0 to %d hours.", MaxGrace/time.Hour)
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

// EraseAccount erases the account at once, and with it the accounts that were
// merged into it.
type EraseAccount struct{}

func (EraseAccount) command() {}

func (EraseAccount) proven() {}

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

// CompleteErasure records that the erasure has removed everything it must.
type CompleteErasure struct{ KeyID string }

func (CompleteErasure) command() {}

func (CompleteErasure) proven() {}

func (c CompleteErasure) decide(_ Setting, a Account) ([]Event, error) {
	if a.erasureCompleted {
		return nil, nil
	}
	return []Event{ErasureCompleted(c)}, nil
}

// ErasedKey returns the key that an AccountErased says was destroyed, given its
// stored type and its clear bytes. For other and for malformed events ok is false.
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
