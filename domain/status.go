package domain

import "slices"

// Status is the state of an account.
type Status string

// The statuses of an account.
const (
	StatusPending  Status = "PENDING"
	StatusVerified Status = "VERIFIED" // the only one that may log in
	StatusDeclined Status = "DECLINED"
	StatusCombined Status = "COMBINED" // merged into another account
	StatusDeleted  Status = "DELETED"  // deletion scheduled or done
)

// Statuses lists every status.
var Statuses = []Status{StatusPending, StatusVerified, StatusDeclined, StatusCombined, StatusDeleted}

// Cause is what can move an account from one status to another.
type Cause string

// The causes of a transition.
const (
	CauseAPI      Cause = "API"      // a caller sets the status
	CauseSchedule Cause = "schedule" // a schedule is due
	CauseMerge    Cause = "merge"
	CauseUnmerge  Cause = "un-merge"
	CauseDeletion Cause = "deletion" // it is scheduled
	CauseRestore  Cause = "restore"  // a caller sets VERIFIED, which cancels the deletion
	CauseCancel   Cause = "cancel"   // the deletion is cancelled: back to the status before it
)

// Transitions is the status machine: for each pair of statuses, the causes that
// can move an account from the first to the second. A missing pair is impossible.
var Transitions = map[Status]map[Status][]Cause{
	StatusPending: {
		StatusVerified: {CauseAPI}, StatusDeclined: {CauseAPI, CauseSchedule},
		StatusCombined: {CauseMerge}, StatusDeleted: {CauseDeletion},
	},
	StatusVerified: {
		StatusPending: {CauseAPI}, StatusDeclined: {CauseAPI, CauseSchedule},
		StatusCombined: {CauseMerge}, StatusDeleted: {CauseDeletion},
	},
	StatusDeclined: {
		StatusPending: {CauseAPI}, StatusVerified: {CauseAPI},
		StatusCombined: {CauseMerge}, StatusDeleted: {CauseDeletion},
	},
	StatusCombined: {
		StatusPending: {CauseUnmerge}, StatusVerified: {CauseUnmerge}, StatusDeclined: {CauseUnmerge},
	},
	StatusDeleted: {
		StatusPending: {CauseCancel}, StatusVerified: {CauseRestore, CauseCancel}, StatusDeclined: {CauseCancel},
	},
}

// allowed reports whether cause can move an account from one status to another.
func allowed(from, to Status, cause Cause) bool {
	return slices.Contains(Transitions[from][to], cause)
}

// statusBySchedule lists the transitions that a schedule can make.
var statusBySchedule = map[Status][]Status{
	StatusPending:  {StatusDeclined},
	StatusVerified: {StatusDeclined},
}

func (s Status) systemManaged() bool { return s == StatusCombined || s == StatusDeleted }

// StatusChanged moves the account to another status.
type StatusChanged struct {
	From   Status `json:"from" pii:"clear"`
	To     Status `json:"to" pii:"clear"`
	Reason string `json:"reason,omitzero" pii:"seal"` // free text
}

func (StatusChanged) eventType() string { return "account.status-changed.v1" }

func (e StatusChanged) evolve(a Account, _ Entry) Account {
	a.Status, a.StatusReason = e.To, e.Reason
	return a
}

func (e StatusChanged) public(x Entry) []publicEvent {
	return []publicEvent{{"USER_STATUS_CHANGED", statusChanged{x.Sub(), e.From, e.To, x.Meta.ReasonCode}}}
}

func (StatusChanged) catalogue() []PublicType {
	return []PublicType{{Name: "USER_STATUS_CHANGED", When: "the status changes for any reason", Data: statusChanged{},
		From: typesOf(StatusChanged{}, AccountCombined{}, AccountRestored{}, DeletionScheduled{}, DeletionCancelled{}),
		Aliases: []Alias{
			{"ACCOUNT_ACTIVATED", "to VERIFIED", func(data any) bool { return data.(statusChanged).To == StatusVerified }},
			{"ACCOUNT_DEACTIVATED", "to DECLINED or PENDING", func(data any) bool {
				to := data.(statusChanged).To // deleted and combined accounts have other events
				return to == StatusDeclined || to == StatusPending
			}},
		}}}
}

type statusChanged struct {
	Sub        string `json:"sub" doc:"The account."`
	From       Status `json:"from" doc:"The previous status."`
	To         Status `json:"to" doc:"The new status."`
	ReasonCode string `json:"reasonCode,omitzero" doc:"Why the status changed, as a code."`
}

// SetStatus sets the status. Setting the present status changes nothing.
type SetStatus struct {
	Status Status
	Reason string // free text, personal; at most 1024 characters
}

func (SetStatus) command() {}

// admits accepts every status: decide checks the transition.
func (SetStatus) admits(Status) bool { return true }

func (c SetStatus) decide(_ Setting, a Account) ([]Event, error) {
	var f faults
	if !slices.Contains(Statuses, c.Status) {
		f.add("/userStatus", "must be PENDING, VERIFIED or DECLINED")
	}
	f.text("/reason", c.Reason, 1024)
	if err := f.err(); err != nil {
		return nil, err
	}
	switch {
	case c.Status.systemManaged():
		return nil, refuse(CodeStatusSystemManaged, "The status %s is set by merging or deleting, not by the status API.", c.Status)
	case c.Status == a.Status:
		return nil, nil
	case !allowed(a.Status, c.Status, CauseAPI) && !allowed(a.Status, c.Status, CauseRestore):
		return nil, refuse(CodeInvalidStatusTransition, "The status cannot change from %s to %s.", a.Status, c.Status)
	}
	return statusChange(a, c.Status, c.Reason), nil
}

// statusChange returns the events of a change of status and of its consequences.
// Every change of status uses it, or restore.
func statusChange(a Account, to Status, reason string) []Event {
	if a.Deletion != (Deletion{}) {
		return restore(a, to, reason)
	}
	return append([]Event{StatusChanged{From: a.Status, To: to, Reason: reason}}, verifiedCancels(a, to)...)
}

// verifiedCancels cancels what the schedule setups planned for the unverified
// account, if its new status is VERIFIED.
func verifiedCancels(a Account, to Status) []Event {
	if to != StatusVerified {
		return nil
	}
	return cancelPlanned(a, reasonVerified, func(s Schedule) bool { return s.Origin == ScheduleAuto })
}
