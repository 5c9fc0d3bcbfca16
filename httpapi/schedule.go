package httpapi

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"accountledger/domain"
	"accountledger/eventstore"
)

func (s *server) scheduleRoutes() {
	onSchedule := []domain.Code{domain.CodeScheduleNotFound}
	handle(s, route{
		method: "POST", path: "/v1/accounts/{sub}/schedules", name: "createSchedule", scope: scopeAccountsWrite, status: 201, answer: domain.Schedule{},
		summary: "Create a schedule for an account",
		text:    "Plans a reminder, a status change to DECLINED, or a deletion. The ledger executes it within a second of its due time. Schedules that were due while the server was down are executed when it starts, and are marked late.",
		example: `{"kind":"status_change","targetStatus":"DECLINED","dueTime":"2030-01-01T00:00:00Z"}`,
		codes:   codes(onChange, []domain.Code{domain.CodeStatusSystemManaged}),
	}, s.createSchedule)
	handle(s, route{
		method: "GET", path: "/v1/accounts/{sub}/schedules", name: "listSchedules", scope: scopeAccountsRead, status: 200, answer: schedules{},
		summary: "List the schedules of an account",
		text:    "Returns the last hundred schedules that ended, then all planned ones. Older ones are in the account's history.",
		codes:   codes(onAccount, onQuery),
	}, s.listSchedules)
	handle(s, route{
		method: "GET", path: "/v1/accounts/{sub}/schedules/{scheduleId}", name: "getSchedule", scope: scopeAccountsRead, status: 200, answer: domain.Schedule{},
		summary: "Get a schedule of an account",
		text:    "Returns a planned schedule, or one of the last hundred that ended.",
		codes:   codes(onAccount, onQuery, onSchedule),
	}, s.getSchedule)
	handle(s, route{
		method: "PATCH", path: "/v1/accounts/{sub}/schedules/{scheduleId}", name: "patchSchedule", scope: scopeAccountsWrite, status: 200, answer: domain.Schedule{},
		summary: "Postpone a schedule",
		text:    "Moves the schedule to another time in the future, later or earlier.",
		example: `{"dueTime":"2030-02-01T00:00:00Z"}`,
		codes:   codes(onChange, onSchedule, []domain.Code{domain.CodeScheduleEnded}),
	}, s.patchSchedule)
	handle(s, route{
		method: "DELETE", path: "/v1/accounts/{sub}/schedules/{scheduleId}", name: "cancelSchedule", scope: scopeAccountsWrite, status: 200, answer: domain.Schedule{},
		summary: "Cancel a schedule",
		text:    "Cancels the schedule, which remains visible. Cancelling the schedule of an account's deletion cancels the deletion. Cancelling again changes nothing.",
		codes:   codes(onChange, onSchedule, []domain.Code{domain.CodeScheduleEnded}),
	}, s.cancelSchedule)
	s.scheduleSetupRoutes()
}

// ScheduleID identifies the schedule a request is about.
type ScheduleID struct {
	ScheduleID string `path:"scheduleId" doc:"The schedule's id." example:"0190b0c2-5f3e-7c1a-9d5e-3f6a1b2c4d5e"`
}

// schedules is the list of an account's schedules.
type schedules struct {
	Schedules []domain.Schedule `json:"schedules" doc:"The schedules that ended, then the planned ones."`
	Next      *string           `json:"next" doc:"Always null: the list is never paged."`
}

// newSchedule is the body of POST /v1/accounts/{sub}/schedules.
type newSchedule struct {
	Kind          domain.ScheduleKind `json:"kind" enum:"reminder,status_change,deletion" doc:"reminder, status_change or deletion."`
	DueTime       time.Time           `json:"dueTime" doc:"When the schedule is due."`
	TargetStatus  domain.Status       `json:"targetStatus,omitzero" enum:"PENDING,VERIFIED,DECLINED,COMBINED,DELETED" doc:"With kind status_change: DECLINED."`
	ReminderNo    int                 `json:"reminderNo,omitzero" minimum:"1" maximum:"100" doc:"With kind reminder: the reminder's number."`
	PeriodSeconds int64               `json:"periodSeconds,omitzero" minimum:"86400" doc:"Repeat at this interval in seconds until the schedule is cancelled. At least one day; not allowed for a deletion."`
}

type createScheduleInput struct {
	Sub
	Command
	JSON[newSchedule]
}

func (s *server) createSchedule(ctx context.Context, c *call, in *createScheduleInput) (*answer, error) {
	id := in.newID(c)
	a, err := s.executeSchedule(ctx, c, in.Command, in.Sub.Sub, id, domain.PlanSchedule{ScheduleID: id, Kind: in.value.Kind, DueTime: in.value.DueTime,
		TargetStatus: in.value.TargetStatus, ReminderNo: in.value.ReminderNo, PeriodSeconds: in.value.PeriodSeconds})
	if err == nil && !in.DryRun {
		a.Location = "/v1/accounts/" + strings.ToLower(in.Sub.Sub) + "/schedules/" + id
	}
	return a, err
}

// executeSchedule executes cmd on the account and answers with one schedule.
func (s *server) executeSchedule(ctx context.Context, c *call, in Command, sub, id string, cmd domain.Command) (*answer, error) {
	return s.executeAnd(ctx, c, in, sub, cmd, func(a *answer, result domain.Result[domain.Account]) (*answer, error) {
		schedule, err := scheduleOf(result.State, id)
		if err != nil {
			return nil, err
		}
		return a.rendered(schedule)
	})
}

func scheduleOf(account domain.Account, id string) (domain.Schedule, error) {
	schedule, ok := account.Schedule(id)
	if !ok {
		return schedule, &domain.Error{Code: domain.CodeScheduleNotFound, Detail: "The account has no schedule with this id."}
	}
	return schedule, nil
}

type listSchedulesInput struct {
	Sub
	Query
}

func (s *server) listSchedules(ctx context.Context, _ *call, in *listSchedulesInput) (*answer, error) {
	a, account, err := s.current(ctx, in.Query, in.Sub)
	if err != nil {
		return nil, err
	}
	return a.rendered(schedules{Schedules: account.Schedules})
}

type getScheduleInput struct {
	Sub
	ScheduleID
	Query
}

func (s *server) getSchedule(ctx context.Context, _ *call, in *getScheduleInput) (*answer, error) {
	a, account, err := s.current(ctx, in.Query, in.Sub)
	if err != nil {
		return nil, err
	}
	schedule, err := scheduleOf(account, in.ScheduleID.ScheduleID)
	if err != nil {
		return nil, err
	}
	return a.rendered(schedule)
}

type patchScheduleInput struct {
	Sub
	ScheduleID
	Command
	JSON[schedulePatch]
}

// schedulePatch is the body of PATCH /v1/accounts/{sub}/schedules/{scheduleId}.
type schedulePatch struct {
	DueTime time.Time `json:"dueTime" doc:"The new due time."`
}

func (s *server) patchSchedule(ctx context.Context, c *call, in *patchScheduleInput) (*answer, error) {
	id := in.ScheduleID.ScheduleID
	return s.executeSchedule(ctx, c, in.Command, in.Sub.Sub, id, domain.PostponeSchedule{ScheduleID: id, DueTime: in.value.DueTime})
}

type cancelScheduleInput struct {
	Sub
	ScheduleID
	Command
}

func (s *server) cancelSchedule(ctx context.Context, c *call, in *cancelScheduleInput) (*answer, error) {
	id := in.ScheduleID.ScheduleID
	return s.executeSchedule(ctx, c, in.Command, in.Sub.Sub, id, domain.CancelSchedule{ScheduleID: id})
}

func (s *server) scheduleSetupRoutes() {
	onSetup := []domain.Code{domain.CodeScheduleSetupNotFound}
	handle(s, route{
		method: "GET", path: "/v1/schedule-setups", name: "listScheduleSetups", scope: scopeConfigRead, status: 200, answer: scheduleSetups{},
		summary: "List the schedule setups",
		text:    "Returns the setups, which plan schedules for every new account that is not VERIFIED, sorted by offset.",
		codes:   onQuery,
	}, s.listScheduleSetups)
	handle(s, route{
		method: "GET", path: "/v1/schedule-setups/{setupId}", name: "getScheduleSetup", scope: scopeConfigRead, status: 200, answer: domain.ScheduleSetup{},
		summary: "Get a schedule setup",
		text:    "Returns a setup, which plans a schedule for every new account that is not VERIFIED.",
		codes:   codes(onSetup, onQuery),
	}, s.getScheduleSetup)
	handle(s, route{
		method: "PUT", path: "/v1/schedule-setups/{setupId}", name: "putScheduleSetup", scope: scopeConfigWrite, status: 200, answer: domain.ScheduleSetup{},
		summary: "Define or change a schedule setup",
		text:    "Creates or replaces the setup, for accounts created from now on. Setups can define at most five reminders, numbered from 1 without gaps, each later than the previous one; then one status change to DECLINED; then one deletion. When an account becomes VERIFIED, the schedules that setups planned for it are cancelled.",
		example: `{"kind":"reminder","reminderNo":1,"offset":"P7D"}`,
		codes:   codes(onCommand, []domain.Code{domain.CodeStatusSystemManaged}),
	}, s.putScheduleSetup)
	handle(s, route{
		method: "DELETE", path: "/v1/schedule-setups/{setupId}", name: "deleteScheduleSetup", scope: scopeConfigWrite, status: 204,
		summary: "Delete a schedule setup",
		text:    "Deletes the setup. Reminders must be deleted in reverse order. Schedules already planned for accounts remain.",
		codes:   codes(onSetup, onCommand, []domain.Code{domain.CodeScheduleSetupOrder}),
	}, s.deleteScheduleSetup)
}

// SetupID identifies the schedule setup a request is about.
type SetupID struct {
	SetupID string `path:"setupId" doc:"The setup's id." example:"first-reminder"`
}

// scheduleSetups is the list of all setups.
type scheduleSetups struct {
	ScheduleSetups []domain.ScheduleSetup `json:"scheduleSetups" doc:"All setups, sorted by offset."`
	Next           *string                `json:"next" doc:"Always null: the list is never paged."`
}

type listScheduleSetupsInput struct{ Query }

func (s *server) listScheduleSetups(ctx context.Context, _ *call, in *listScheduleSetupsInput) (*answer, error) {
	a, config, err := s.config(ctx, in.Query)
	if err != nil {
		return nil, err
	}
	list := slices.SortedFunc(maps.Values(config.ScheduleSetups), domain.BySetup)
	return a.rendered(scheduleSetups{ScheduleSetups: list})
}

type getScheduleSetupInput struct {
	SetupID
	Query
}

func (s *server) getScheduleSetup(ctx context.Context, _ *call, in *getScheduleSetupInput) (*answer, error) {
	a, config, err := s.config(ctx, in.Query)
	if err != nil {
		return nil, err
	}
	setup, ok := config.ScheduleSetups[in.SetupID.SetupID]
	if !ok {
		return nil, &domain.Error{Code: domain.CodeScheduleSetupNotFound, Detail: "There is no such schedule setup."}
	}
	a.ETag = etag(setup.Revision)
	return a.rendered(setup)
}

type putScheduleSetupInput struct {
	SetupID
	Command
	JSON[newScheduleSetup]
}

// newScheduleSetup is the body of PUT /v1/schedule-setups/{setupId}.
type newScheduleSetup struct {
	Kind          domain.ScheduleKind `json:"kind" enum:"reminder,status_change,deletion" doc:"reminder, status_change or deletion."`
	Offset        string              `json:"offset,omitzero" maxLength:"40" doc:"Time after account creation as an ISO 8601 duration, such as P14D."`
	OffsetSeconds int64               `json:"offsetSeconds,omitzero" minimum:"1" doc:"The same offset in seconds. Give exactly one of the two."`
	ReminderNo    int                 `json:"reminderNo,omitzero" minimum:"1" maximum:"5" doc:"With kind reminder: the reminder's number, from 1 without gaps."`
	TargetStatus  domain.Status       `json:"targetStatus,omitzero" enum:"PENDING,VERIFIED,DECLINED,COMBINED,DELETED" doc:"With kind status_change: DECLINED."`
	PeriodSeconds int64               `json:"periodSeconds,omitzero" minimum:"86400" doc:"Repeat at this interval in seconds until the schedule is cancelled. At least one day; not allowed for a deletion."`
}

func (s *server) putScheduleSetup(ctx context.Context, c *call, in *putScheduleSetupInput) (*answer, error) {
	id, v := in.SetupID.SetupID, in.value
	cmd := domain.PutScheduleSetup{SetupID: id, Kind: v.Kind, Offset: v.Offset, OffsetSeconds: v.OffsetSeconds,
		ReminderNo: v.ReminderNo, TargetStatus: v.TargetStatus, PeriodSeconds: v.PeriodSeconds}
	return s.configure(ctx, c, in.Command, cmd, func(config *domain.Config) (any, eventstore.Revision) {
		setup := config.ScheduleSetups[id]
		return setup, setup.Revision
	})
}

type deleteScheduleSetupInput struct {
	SetupID
	Command
}

func (s *server) deleteScheduleSetup(ctx context.Context, c *call, in *deleteScheduleSetupInput) (*answer, error) {
	return s.configure(ctx, c, in.Command, domain.DeleteScheduleSetup{SetupID: in.SetupID.SetupID}, deleted)
}
