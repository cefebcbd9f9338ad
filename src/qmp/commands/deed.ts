/**
 * Commands that can also be parts of a transaction.
 *
 * Invariants:
 * - Whatever a deed did when it was prepared can be taken back until it is committed.
 * - A command of its own is a transaction of one.
 */

import type { MaybePromise } from '../../coroutine/coroutine.ts'
import type { Transaction } from '../../job/transaction.ts'
import { type Command, command } from '../command.ts'
import type { JsonObject } from '../json.ts'
import { type Members, type StructSchema, struct } from '../schema.ts'

/** A prepared deed; exactly one of the two is called. */
export interface Step {
  /** Makes it final; must not fail. */
  commit?(): MaybePromise<void>
  /** Takes it back; must not fail. */
  undo(): MaybePromise<void>
}

/** One kind of deed. */
export interface Deed {
  /** Its arguments. */
  readonly schema: StructSchema
  /** Its jobs can complete together with others; default false. */
  readonly groups?: boolean
  /** Prepares it. `group` is what a job of it completes with. Errors: those of the command. */
  prepare(args: JsonObject, group: Transaction | undefined): MaybePromise<Step>
}

/** Deeds by the name of their command. */
export type DeedTable = Readonly<Record<string, Deed>>

/** Makes a deed. */
export function deed(
  members: Members,
  prepare: (args: JsonObject, group: Transaction | undefined) => MaybePromise<Step>,
  groups = false,
): Deed {
  return { schema: struct(members), prepare, groups }
}

/** The command that does nothing but this deed. */
export function commandOf(one: Deed): Command {
  return command(one.schema, async (args) => {
    const step = await one.prepare(args, undefined)
    await step.commit?.()
  })
}
