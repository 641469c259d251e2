/* net: the constants, packed for the kernels that read them. */
#include "net.h"

/* weights of conv from features.0 at net.py:12 */
const int8_t net_weights_0[18] = {
    -3, -2, -1, 0, 1, 2, 3, -3, -2, -1, 0, 1, 2, 3, -3, -2, -1, 0,
};

/* bias of conv from features.0 at net.py:12 */
const int32_t net_bias_0[2] = {
    0, 0,
};

/* multipliers of conv from features.0 at net.py:12 */
const int32_t net_multipliers_0[1] = {
    335544320,
};

/* padding of conv from features.0 at net.py:12 */
const int8_t net_padding_0[1] = {
    0,
};

/* table of tanh from features.1 at net.py:13 */
const int8_t net_table_1[256] = {
    -1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 23, 24, 25,
    26, 27, 28, 29, 30, 31, 32, 33, 34, 34, 35, 36, 37, 38, 39, 40, 40, 41, 42, 43, 44, 44, 45, 46, 47, 48,
    48, 49, 50, 51, 51, 52, 53, 53, 54, 55, 55, 56, 57, 57, 58, 59, 59, 60, 61, 61, 62, 63, 63, 64, 64, 65,
    65, 66, 67, 67, 68, 68, 69, 69, 70, 70, 71, 71, 72, 72, 73, 73, 73, 74, 74, 75, 75, 76, 76, 76, 77, 77,
    78, 78, 78, 79, 79, 79, 80, 80, 80, 81, 81, 81, 82, 82, 82, 83, 83, 83, 84, 84, 84, 84, 85, 85, 85, 85,
    86, 86, 86, 86, 87, 87, 87, 87, 88, 88, 88, 88, 88, 89, 89, 89, 89, 89, 90, 90, 90, 90, 90, 90, 91, 91,
    91, 91, 91, 91, 91, 92, 92, 92, 92, 92, 92, 92, 93, 93, 93, 93, 93, 93, 93, 93, 93, 94, 94, 94, 94, 94,
    94, 94, 94, 94, 94, 95, 95, 95, 95, 95, 95, 95, 95, 95, 95, 95, 95, 95, 96, 96, 96, 96, 96, 96, 96, 96,
    96, 96, 96, 96, 96, 96, 96, 96, 96, 97, 97, 97, 97, 97, 97, 97, 97, 97, 97, 97, 97, 97, 97, 97, 97, 97,
    97, 97, 97, 97, 97, 97, 97, 97, 97, 98, 98, 98, 98, 98, 98, 98, 98, 98, 98, 98,
};

/* weights of linear from head at net.py:15 */
const int8_t net_weights_3[6] = {
    -3, -2, -1, 0, 1, 2,
};

/* bias of linear from head at net.py:15 */
const int32_t net_bias_3[3] = {
    -5, -1, 3,
};

/* multipliers of linear from head at net.py:15 */
const int32_t net_multipliers_3[1] = {
    429496730,
};

