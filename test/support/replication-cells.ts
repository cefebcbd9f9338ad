/** The axes of the replication matrix: requests, actions, faults, and what each of them means. */
import type { TapOp } from './tap.ts'

/** Requests under test. */
export const OPERATIONS = [
  'guest read',
  'guest write',
  'export write',
  'export flush',
  'discard',
  'zero write',
] as const
/** What happens meanwhile. */
export const ACTIONS = [
  'start',
  'checkpoint',
  'failover begin',
  'commit pivot',
  'stop',
  'close',
  'reopen',
  'drain nesting',
  'job cancel',
  'merge cancel',
] as const
/** What goes wrong. */
export const FAULTS = [
  'no fault',
  'read fault',
  'write fault',
  'no space',
  'slow',
  'lost connection',
] as const

/** A request under test. */
export type Operation = (typeof OPERATIONS)[number]
/** What happens meanwhile. */
export type Action = (typeof ACTIONS)[number]
/** What goes wrong. */
export type Fault = (typeof FAULTS)[number]

/** Why a cell does not exist; undefined when it does. */
export function whyNot(operation: Operation, fault: Fault): string | undefined {
  if (fault !== 'lost connection' || !operation.startsWith('guest')) return undefined
  return 'the guest of a secondary has no connection: only the primary comes over one'
}

/** A tap and the kind of request that is meant there. */
export type Site = readonly [node: string, op: TapOp]
/** Who asks. */
export type Side = 'guest' | 'export'
/** What for. */
export type Kind = 'read' | 'write' | 'zeroes' | 'discard' | 'flush'

/** What a request under test is made of. */
export interface Shape {
  /** The request under test, and what the other side does to the same range at the same time. */
  readonly own: readonly [Side, Kind]
  readonly other: readonly [Side, Kind]
  /** Where it is held. */
  readonly held: readonly Site[]
  /** Where a fault of the medium hits. */
  readonly broken: Readonly<Record<'read fault' | 'write fault' | 'no space', Site>>
}

/** Every request. */
export const SHAPES: Readonly<Record<Operation, Shape>> = {
  'guest read': {
    own: ['guest', 'read'],
    other: ['export', 'write'],
    held: [['active', 'read']],
    broken: {
      'read fault': ['active', 'read'],
      'write fault': ['local', 'write'],
      'no space': ['hidden', 'write'],
    },
  },
  'guest write': {
    own: ['guest', 'write'],
    other: ['export', 'write'],
    held: [['active', 'write']],
    broken: {
      'read fault': ['local', 'read'],
      'write fault': ['active', 'write'],
      'no space': ['active', 'write'],
    },
  },
  'export write': {
    own: ['export', 'write'],
    other: ['guest', 'write'],
    held: [
      ['hidden', 'write'],
      ['local', 'write'],
    ],
    broken: {
      'read fault': ['local', 'read'],
      'write fault': ['local', 'write'],
      'no space': ['hidden', 'write'],
    },
  },
  'export flush': {
    own: ['export', 'flush'],
    other: ['guest', 'write'],
    held: [['local', 'flush']],
    broken: {
      'read fault': ['local', 'read'],
      'write fault': ['local', 'flush'],
      'no space': ['local', 'flush'],
    },
  },
  discard: {
    own: ['export', 'discard'],
    other: ['guest', 'discard'],
    held: [['local', 'discard']],
    broken: {
      'read fault': ['local', 'read'],
      'write fault': ['local', 'discard'],
      'no space': ['hidden', 'write'],
    },
  },
  'zero write': {
    own: ['export', 'zeroes'],
    other: ['guest', 'zeroes'],
    held: [
      ['local', 'zeroes'],
      ['active', 'zeroes'],
    ],
    broken: {
      'read fault': ['local', 'read'],
      'write fault': ['local', 'zeroes'],
      'no space': ['hidden', 'write'],
    },
  },
}
