/**
 * Limits of a throttle group: their names, their checks, and the leaky buckets they fill.
 *
 * Invariants:
 * - A bucket leaks at its average rate; a request waits while what is in the bucket exceeds its size.
 * - With a burst longer than a second a second bucket keeps the burst itself at its maximum.
 */
import { BlockError } from '../util/errors.ts'

/** The six things that are limited. */
export const LIMIT_NAMES = [
  'bps-total',
  'bps-read',
  'bps-write',
  'iops-total',
  'iops-read',
  'iops-write',
] as const

/** One of them: bytes or operations per second, for one direction or both. */
export type LimitName = (typeof LIMIT_NAMES)[number]

/** Members as monitors write them: each name, `…-max`, `…-max-length` (seconds), and `iops-size`. */
export type ThrottleLimits = Readonly<Partial<Record<string, number>>>

const MAX_VALUE = 1e15
/** Without a burst a bucket holds what comes in this long. */
const PLAIN_SECONDS = 0.1
const MS_PER_SECOND = 1000

const suffixes = ['', '-max', '-max-length'] as const
const KNOWN = new Set([...LIMIT_NAMES.flatMap((n) => suffixes.map((s) => n + s)), 'iops-size'])

function refuse(words: string): never {
  throw new BlockError('EINVAL', words)
}

/** Checks limits and fills in what was left out. Errors: EINVAL with the reason. */
export function checkLimits(limits: ThrottleLimits): Record<string, number> {
  for (const [name, value] of Object.entries(limits)) {
    if (!KNOWN.has(name)) refuse(`Parameter '${name}' is unexpected`)
    if (typeof value !== 'number' || !Number.isInteger(value))
      refuse(`Invalid parameter type for '${name}', expected: integer`)
    if (value < 0 || value > MAX_VALUE)
      refuse(`bps/iops/max values must be within [0, ${MAX_VALUE}]`)
  }
  const full: Record<string, number> = {}
  for (const name of KNOWN) full[name] = limits[name] ?? (name.endsWith('-length') ? 1 : 0)
  for (const unit of ['bps', 'iops'])
    for (const suffix of ['', '-max']) {
      const value = (way: string): number => full[`${unit}-${way}${suffix}`] ?? 0
      if (value('total') > 0 && (value('read') > 0 || value('write') > 0))
        refuse('bps/iops/max total values and read/write values cannot be used at the same time')
    }
  const anyIops = LIMIT_NAMES.some((name) => name.startsWith('iops') && (full[name] ?? 0) > 0)
  if ((full['iops-size'] ?? 0) > 0 && !anyIops) refuse('iops size requires an iops value to be set')
  for (const name of LIMIT_NAMES) checkBucket(name, full)
  return full
}

function checkBucket(name: LimitName, full: Readonly<Record<string, number>>): void {
  const average = full[name] ?? 0
  const max = full[`${name}-max`] ?? 0
  const seconds = full[`${name}-max-length`] ?? 1
  if (seconds === 0) refuse('the burst length cannot be 0')
  if (seconds > 1 && max === 0) refuse('burst length set without burst rate')
  if (max > 0 && seconds > MAX_VALUE / max) refuse('burst length too high for this burst rate')
  if (max > 0 && average === 0) refuse('bps_max/iops_max require corresponding bps/iops values')
  if (max > 0 && max < average) refuse('bps_max/iops_max cannot be lower than bps/iops')
}

/** One bucket. */
export class LeakyBucket {
  readonly #average: number
  readonly #max: number
  readonly #seconds: number
  /** What is in it. */
  level = 0
  /** What is in the bucket of the burst. */
  burst = 0

  /** Rates per second; `max` 0 = no bursts; `seconds`: how long a burst may last. */
  constructor(average: number, max: number, seconds: number) {
    this.#average = average
    this.#max = max
    this.#seconds = seconds
  }

  /** Time passes. */
  leak(ms: number): void {
    this.level = Math.max(0, this.level - (this.#average * ms) / MS_PER_SECOND)
    if (this.#seconds > 1) this.burst = Math.max(0, this.burst - (this.#max * ms) / MS_PER_SECOND)
  }

  /** A request was let through. */
  add(units: number): void {
    this.level += units
    if (this.#seconds > 1) this.burst += units
  }

  /** Milliseconds until the next request may pass. */
  waitMs(): number {
    if (this.#average === 0) return 0
    const plain = this.#average * PLAIN_SECONDS
    const size = this.#max === 0 ? plain : this.#max * this.#seconds
    const over = this.level - size
    if (over > 0) return (over * MS_PER_SECOND) / this.#average
    const overBurst = this.burst - this.#max * PLAIN_SECONDS
    if (this.#seconds > 1 && overBurst > 0) return (overBurst * MS_PER_SECOND) / this.#max
    return 0
  }
}
