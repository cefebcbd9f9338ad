/** Types of the wall checks. */
/** All findings over files (path relative to the project → text). */
export declare function checkWalls(files: ReadonlyMap<string, string>): string[]
/** Text without comments, and with `strings` without strings. */
export declare function blank(text: string, strings: boolean): string
/** The judged files of a project folder. */
export declare function readTree(root: string): Map<string, string>
