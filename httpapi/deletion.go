package httpapi

import (
	"context"
	"net/http"
	"time"

	"accountledger/domain"
	"accountledger/projections/erasure"
)

func (s *server) deletionRoutes() {
	onDeletion := []domain.Code{domain.CodeAccountNotFound, domain.CodeDeletionNotFound}
	handle(s, route{
		method: "DELETE", path: "/v1/accounts/{sub}", name: "deleteAccount", scope: scopeAccountsWrite, status: 202, answer: scheduledDeletion{}, done: certified{},
		summary: "Delete an account",
		text: "Sets the account to DELETED immediately; it keeps its identifiers. After the grace period the ledger erases it: it destroys the account's data key, and with it all personal data, including that of accounts merged into it, and releases its identifiers. " +
			"With immediate=true the ledger erases the account now and returns 200 with a certificate. Repeating the request changes nothing.",
		codes: codes(onChange, []domain.Code{domain.CodeAccountNotFound}),
	}, s.deleteAccount)
	handle(s, route{
		method: "GET", path: "/v1/accounts/{sub}/deletion", name: "getDeletion", scope: scopeAccountsRead, status: 200, answer: deletionState{},
		summary: "Get the deletion of an account",
		text:    "Returns when a scheduled deletion is due or, if the account is erased, the certificate of its erasure.",
		codes:   codes(onDeletion, onQuery),
	}, s.getDeletion)
	handle(s, route{
		method: "DELETE", path: "/v1/accounts/{sub}/deletion", name: "cancelDeletion", scope: scopeAccountsWrite, status: 200, answer: domain.Account{},
		summary: "Cancel the deletion of an account",
		text:    "Restores the account's previous status. Setting the status to VERIFIED also cancels the deletion.",
		codes:   codes(onChange, onDeletion),
	}, s.cancelDeletion)
}

type deleteAccountInput struct {
	Sub
	Command
	Grace     string `query:"grace" maxLength:"16" doc:"How long the account can be restored, as a duration such as 48h, up to ten years. The server setting deletion-grace is the default." example:"48h"`
	Immediate bool   `query:"immediate" doc:"Erase the account now, without a grace period."`
}

// plannedDeletion is a scheduled deletion.
type plannedDeletion struct {
	Status  string    `json:"status" doc:"Always scheduled."`
	DueTime time.Time `json:"dueTime" doc:"When the account will be erased."`
}

type scheduledDeletion struct {
	Deletion plannedDeletion `json:"deletion" doc:"The scheduled deletion."`
}

// certified is the answer once an account is erased.
type certified struct {
	Certificate erasure.Certificate `json:"certificate" doc:"What was erased, when, and at whose request."`
}

// deletionState is either a scheduled deletion or a certificate.
type deletionState struct {
	Deletion    *plannedDeletion     `json:"deletion,omitzero" doc:"The scheduled deletion."`
	Certificate *erasure.Certificate `json:"certificate,omitzero" doc:"For an erased account: what was erased, when, and at whose request."`
}

func (s *server) deleteAccount(ctx context.Context, c *call, in *deleteAccountInput) (*answer, error) {
	if in.Immediate {
		return s.eraseAccount(ctx, c, in)
	}
	grace := s.DeletionGrace
	if in.Grace != "" {
		var err error
		if grace, err = time.ParseDuration(in.Grace); err != nil || grace < 0 || grace > domain.MaxGrace {
			return nil, invalidParameters(fault{Parameter: "grace", Detail: "must be a duration of up to ten years, such as 48h"})
		}
	}
	cmd := domain.ScheduleAccountDeletion{ScheduleID: in.newID(c), Grace: grace}
	return s.executeAnd(ctx, c, in.Command, in.Sub.Sub, cmd, func(a *answer, result domain.Result[domain.Account]) (*answer, error) {
		planned, _ := result.State.Schedule(result.State.Deletion.ScheduleID)
		return a.rendered(scheduledDeletion{plannedDeletion{"scheduled", planned.DueTime}})
	})
}

// eraseAccount erases the account and answers when its data is removed from
// every file, or after AwaitTimeout.
func (s *server) eraseAccount(ctx context.Context, c *call, in *deleteAccountInput) (*answer, error) {
	if in.Grace != "" {
		return nil, invalidParameters(fault{Parameter: "grace", Detail: "must not be combined with immediate"})
	}
	return s.executeAnd(ctx, c, in.Command, in.Sub.Sub, domain.EraseAccount{}, func(a *answer, result domain.Result[domain.Account]) (*answer, error) {
		// An erasure that takes longer continues in the background; the certificate shows its progress.
		awaited, cancel := context.WithTimeout(ctx, s.AwaitTimeout)
		defer cancel()
		for _, ended := range append([]domain.Account{result.State}, result.Others...) {
			if err := s.Erasure.Await(awaited, ended.Sub); err != nil && (awaited.Err() == nil || ctx.Err() != nil) {
				return nil, err
			}
		}
		certificate, err := s.Erasure.Certificate(ctx, result.State.Sub)
		if err != nil {
			return nil, err
		}
		a.Status, a.ETag = http.StatusOK, ""
		return a.rendered(certified{certificate})
	})
}

type getDeletionInput struct {
	Sub
	Query
}

func (s *server) getDeletion(ctx context.Context, _ *call, in *getDeletionInput) (*answer, error) {
	a, row, err := s.row(ctx, in.Query, in.Sub)
	if err != nil {
		return nil, err
	}
	if !row.ErasedTime.IsZero() {
		certificate, err := s.Erasure.Certificate(ctx, row.Sub)
		if err != nil {
			return nil, err
		}
		return a.rendered(deletionState{Certificate: &certificate})
	}
	account, err := row.Account()
	if err != nil {
		return nil, err
	}
	planned, ok := account.Schedule(account.Deletion.ScheduleID)
	if !ok {
		return nil, &domain.Error{Code: domain.CodeDeletionNotFound, Detail: "No deletion of the account is scheduled."}
	}
	return a.rendered(deletionState{Deletion: &plannedDeletion{"scheduled", planned.DueTime}})
}

type cancelDeletionInput struct {
	Sub
	Command
}

func (s *server) cancelDeletion(ctx context.Context, c *call, in *cancelDeletionInput) (*answer, error) {
	return s.execute(ctx, c, in.Command, in.Sub.Sub, domain.CancelAccountDeletion{})
}
